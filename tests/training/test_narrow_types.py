"""Moments and parameters in bfloat16 train as those in float32 do, within what eight bits can hold."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from routerjax import models, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.training.state import TrainState
from routerjax.training.step import Sums, make_update
from tests.training.test_decoder_mesh import CONFIG, NUM_MODELS, battles

HALF_BIT = 2.0**-8
RECIPE = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.0, final_fraction=1.0, weight_decay=0.0)


def test_moments_in_bfloat16_follow_gradients_that_shrink() -> None:
    @functools.partial(jax.jit, static_argnums=0)
    def run(dtype: str) -> tuple[optax.OptState, jax.Array]:
        optimizer = training.AdamW(dataclasses.replace(RECIPE, moments_dtype=dtype)).transformation(2200)

        def step(carry: tuple, size: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            updates, state = optimizer.update(jnp.full(4096, size), state, params)
            return (optax.apply_updates(params, updates), state), None

        sizes = jnp.concatenate([jnp.full(200, 1.0), jnp.full(2000, 0.01)])
        params = jnp.zeros(4096)
        (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), sizes)
        return state, params

    (narrow, moved), (wide, expected) = run("bfloat16"), run("float32")
    for name in ("mu", "nu"):
        one, other = (optax.tree.get(state, name) for state in (narrow, wide))
        assert one.dtype == jnp.bfloat16
        # Rounded to the nearest, the second would have stayed at its largest, seven times as large.
        np.testing.assert_allclose(one.astype(jnp.float32).mean(), other.mean(), rtol=0.01)
        assert np.sqrt(np.mean((one.astype(jnp.float32) / other - 1) ** 2)) < 0.25
    assert np.sqrt(np.mean((moved / expected - 1) ** 2)) < 0.02


@functools.cache
def trained(dtype: str, parts: int) -> tuple[float, dict]:
    """Norm of the gradient of a step of so many micro-batches, and the first moment and the parameters after it."""
    module = models.CausalRouter(
        models.Decoder(dataclasses.replace(CONFIG, param_dtype=jnp.dtype(dtype), added_tokens=0)), NUM_MODELS
    )
    batch = battles(0)
    batch = batch._replace(query={**batch.query, "token_ids": batch.query["token_ids"] % 128})
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), batch.query))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        # The same numbers in either type.
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.bfloat16).astype(leaf.dtype), shapes
    )  # fmt: skip
    optimizer = training.AdamW(RECIPE).transformation(1)
    key = jax.random.key(0)
    state = training.create_state(module, batch.query, optimizer, key=key, variables=variables)
    step = training.accumulating_step(module, BRADLEY_TERRY, optimizer, weight_per_step=1.0, wrapper=training.jit_step)
    state, metrics = step(state, [batch] * parts, key)
    moments = optax.tree.get(state.opt_state, "mu")
    return float(metrics["gradient_norm"]), {
        name: flax.traverse_util.flatten_dict(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree))
        for name, tree in (("mu", moments), ("params", state.trained))
    }


def test_parameters_in_bfloat16_have_the_gradients_and_updates_of_float32() -> None:
    (norm, narrow), (expected_norm, wide) = trained("bfloat16", 1), trained("float32", 1)
    np.testing.assert_allclose(norm, expected_norm, rtol=HALF_BIT)
    for path, expected in wide["mu"].items():
        difference = np.abs(narrow["mu"][path] - expected).max()
        assert difference <= HALF_BIT * np.abs(expected).max(), path
    for path, expected in wide["params"].items():
        # Rounded once, up or down, and a tenth of an update more, where gradients are next to nothing.
        difference = narrow["params"][path] - expected
        assert (np.abs(difference) <= 2 * HALF_BIT * np.abs(expected) + 1e-4).all(), path
        # As often up as down: what many parameters are moved by is not lost.
        bound = HALF_BIT * np.abs(expected).mean() * 4 / np.sqrt(expected.size)
        assert abs(difference.mean()) <= bound + 1e-5, path


def test_gradients_of_micro_batches_are_added_in_float32() -> None:
    one, many = trained("bfloat16", 1)[0], trained("bfloat16", 400)[0]
    np.testing.assert_allclose(many, 400 * one, rtol=1e-4)  # in bfloat16 it would stop growing at 256


def test_small_updates_of_parameters_in_bfloat16_are_not_lost() -> None:
    param = {"params": jnp.full(1000, 0.02, jnp.bfloat16)}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.zeros((), jnp.int32), param, {}, optimizer.init(param))
    gradient = {"params": jnp.full(1000, 1e-5, jnp.float32)}  # far below half a bit of 0.02, which is 3e-5
    update = jax.jit(make_update(optimizer, 1.0))
    for _ in range(100):
        state, _ = update(state, Sums(jnp.ones(()), jnp.ones(()), gradient))
    np.testing.assert_allclose(np.asarray(state.trained["params"], np.float32).mean(), 0.02 - 100e-5, rtol=0.02)
