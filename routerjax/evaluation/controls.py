"""Win probabilities of the controls: what a router must beat, and what it cannot."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from routerjax import models
from routerjax.data import Benchmark
from routerjax.evaluation.evaluate import is_chance, preference_label
from routerjax.prompts import prompt_ids
from routerjax.scoring import make_score_fn
from routerjax.typing import Variables

SMALLEST_CHANCE = 1e-6


def control_win_probs(
    benchmark: Benchmark, *, strong: str, weak: str, seed: int = 0
) -> dict[str, Float64[np.ndarray, "prompts"]]:
    """The controls that need no training: ``random``, ``constant`` and ``oracle``.

    Args:
        benchmark: prompts and qualities.
        strong: the expensive model.
        weak: the cheap one.
        seed: of the random router.

    Returns:
        By control, win probabilities in the order of the benchmark's prompts.
    """
    # Equal prompts may have different answers: the oracle knows each row, so rows are told apart by their number.
    row = np.arange(len(benchmark), dtype=np.uint32)
    row_id = jnp.asarray(np.stack([np.zeros_like(row), row], axis=1))
    quality = np.stack([benchmark.quality[strong], benchmark.quality[weak]], axis=1)
    if is_chance(quality):
        # An ideal router says the true win probability: the score of the strong model is its log-odds.
        label = np.clip(preference_label(benchmark, strong=strong, weak=weak), SMALLEST_CHANCE, 1 - SMALLEST_CHANCE)
        quality = np.stack([np.log(label / (1 - label)), np.zeros_like(label)], axis=1)
    known = {"memory": {"prompt_id": row_id, "quality": jnp.asarray(quality, jnp.float32)}}
    text_id = jnp.asarray(prompt_ids(benchmark.prompts))

    def win_prob(module: nn.Module, variables: Variables, prompt_id: jax.Array) -> Float64[np.ndarray, "prompts"]:
        score = jax.jit(make_score_fn(module, strong=0, weak=1))
        return np.asarray(score(variables, {"prompt_id": prompt_id}), np.float64)

    return {
        "random": win_prob(models.RandomScores(num_models=2, seed=seed), {}, text_id),
        "constant": win_prob(models.ConstantScores(num_models=2), {}, text_id),
        "oracle": win_prob(models.OracleScores(num_models=2), known, row_id),
    }
