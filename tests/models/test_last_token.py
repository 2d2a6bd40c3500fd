"""The last layer computes the last token alone where no other is read: the same hidden state and gradients."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import models
from routerjax.models.layers import last_token
from routerjax.typing import PyTree

NUM_LAYERS, LENGTH = 3, 7
CONFIG = models.DecoderConfig(
    model_type="gemma3_text", vocab_size=64, width=16, num_layers=NUM_LAYERS, num_heads=4, num_key_heads=2, head_dim=6,
    mlp_dim=24, max_positions=16, qk_norm=True, sandwich_norms=True, attention_scale=0.5, windows=(0, 3, 3),
    rope_local_base=100.0, qkv_bias=True, initializer_range=0.3, added_tokens=2,
)  # fmt: skip
IS_TOKEN = np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 5 + [1] * 2, [1] + [0] * 6], np.int32)
QUERY = {
    "token_ids": np.random.default_rng(0).integers(66, size=IS_TOKEN.shape).astype(np.int32),
    "attention_mask": IS_TOKEN,
}


def router(**chosen: object) -> tuple[models.CausalRouter, PyTree]:
    """A router, and variables that are random everywhere: adapters would start at 0."""
    module = models.CausalRouter(models.Decoder(dataclasses.replace(CONFIG, **chosen)), 3)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), QUERY))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


def scores_of_all_states(module: models.CausalRouter, variables: PyTree) -> jax.Array:
    """Scores from the hidden states of all tokens, of which the last is taken at the end."""
    of_encoder = {name: leaves["encoder"] for name, leaves in variables.items()}
    hidden = last_token(jnp.asarray(module.encoder.apply(of_encoder, QUERY)), jnp.asarray(IS_TOKEN > 0))
    return hidden @ variables["params"]["classifier"]["kernel"] + variables["params"]["classifier"]["bias"][None]


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"remat": True},
        {"remat": True, "remat_policy": "dots", "lora_rank": 2},
        {"num_layers": 1, "windows": (3,), "final_norm": False},
    ],
    ids=["plain", "remat", "adapters", "one_layer"],
)
def test_the_last_token_alone_has_the_scores_and_gradients_that_it_has_among_all(chosen: dict) -> None:
    module, variables = router(**chosen)
    others = {name: leaves for name, leaves in variables.items() if name != "params"}

    def loss(scores_of: Callable[[PyTree], jax.Array], params: PyTree) -> tuple[jax.Array, jax.Array]:
        scores = scores_of({**others, "params": params})
        return jnp.sum(jnp.sin(scores)), scores

    alone, among_all = (
        jax.jit(jax.grad(functools.partial(loss, scores_of), has_aux=True))(variables["params"])
        for scores_of in (
            lambda each: jnp.asarray(module.apply(each, QUERY)),
            functools.partial(scores_of_all_states, module),
        )
    )
    np.testing.assert_allclose(alone[1], among_all[1], rtol=1e-5, atol=1e-5)

    def compare(gradient: jax.Array, expected: jax.Array) -> None:
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))

    jax.tree.map(compare, alone[0], among_all[0])


def test_weights_of_all_layers_are_not_copied() -> None:
    module, variables = router(num_layers=8, windows=(0,) * 8)
    loss = jax.jit(jax.grad(lambda params: jnp.sum(jnp.asarray(module.apply({"params": params}, QUERY)))))
    text = str(loss.lower(variables["params"]).compile().as_text())
    assert "while(" in text
    assert "f32[7,16,24]" not in text, "a part of the stacked weights, as it would be split for the loop"


def test_dropout_is_drawn_from_its_key() -> None:
    module, variables = router(attention_dropout_rate=0.5)

    def scores(seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(jax.jit(functools.partial(module.apply, deterministic=False))(variables, QUERY, rngs=rngs))

    np.testing.assert_array_equal(scores(0), scores(0))
    assert np.abs(scores(0) - scores(1)).max() > 1e-3
    assert np.abs(scores(0) - np.asarray(module.apply(variables, QUERY))).max() > 1e-3
