"""Small battles that a linear router can learn."""

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.prompts import prompt_ids
from routerjax.typing import PreferenceBatch

NUM_MODELS, WIDTH = 4, 6


def random_battles(*, num_prompts: int = 30, num_battles: int = 100, seed: int = 0) -> PreferenceBatch:
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((num_prompts, WIDTH)).astype(np.float32)
    ability = np.random.default_rng(99).standard_normal((WIDTH, NUM_MODELS))
    query_index = rng.integers(num_prompts, size=num_battles).astype(np.int32)
    model_a = rng.integers(NUM_MODELS, size=num_battles).astype(np.int32)
    model_b = (model_a + rng.integers(1, NUM_MODELS, size=num_battles)).astype(np.int32) % NUM_MODELS
    scores = embedding @ ability
    a_wins = scores[query_index, model_a] > scores[query_index, model_b]
    outcome = np.stack([a_wins, np.zeros_like(a_wins), ~a_wins], axis=1).astype(np.float32)
    return PreferenceBatch(
        query={
            "embedding": jnp.asarray(embedding),
            "prompt_id": jnp.asarray(prompt_ids([f"{seed} {row}" for row in range(num_prompts)])),
        },
        query_index=jnp.asarray(query_index),
        model_a=jnp.asarray(model_a),
        model_b=jnp.asarray(model_b),
        outcome=jnp.asarray(outcome),
        weight=jnp.asarray(rng.uniform(0.5, 2.0, num_battles), jnp.float32),
    )


def difference(one: object, other: object) -> dict:
    """Subtract two trees by numpy, which compiles nothing."""
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), one, other)
