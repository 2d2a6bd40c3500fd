"""Any linen module trains: with collections of its own, with or without ``deterministic``; what it lacks is said."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import InputError, models, scoring, training
from routerjax.config import TrainingConfig
from routerjax.likelihoods import COLLECTION, Davidson
from tests.training.battles import NUM_MODELS, random_battles

BATTLES = random_battles()


class Adapted(nn.Module):
    """A frozen base with a low-rank adapter, as in LoRA; it knows no ``deterministic``."""

    @nn.compact
    def __call__(self, query: dict) -> jax.Array:
        width = query["embedding"].shape[-1]
        base = self.variable("base", "kernel", lambda: jnp.full((width, NUM_MODELS), 0.5)).value
        down = self.param("down", nn.initializers.normal(0.1), (width, 2))
        up = self.param("up", nn.initializers.normal(0.1), (2, NUM_MODELS))
        return query["embedding"] @ (base + down @ up)


def fit(module: nn.Module, **changes: object) -> training.FitResult:
    arguments = {"optimizer": optax.adam(0.1), "training": TrainingConfig(epochs=3, batch_size=32)}
    return training.fit(module, BATTLES, **arguments | changes)


@pytest.mark.parametrize("devices", ["jit", "pmap"])
def test_only_params_and_the_likelihoods_own_are_trained(devices: str) -> None:
    config = TrainingConfig(epochs=3, batch_size=32, devices=devices)
    result = fit(Adapted(), likelihood=Davidson(), training=config)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert set(result.variables) == {"params", "base", COLLECTION}
    np.testing.assert_array_equal(result.variables["base"]["kernel"], np.full((6, NUM_MODELS), 0.5))
    assert float(result.variables[COLLECTION]["tie"]) != 0
    moments = [leaf.shape for leaf in jax.tree.leaves(result.state.opt_state) if leaf.shape]
    assert sorted(moments) == sorted([(6, 2), (2, NUM_MODELS)] * 2)
    score = scoring.make_score_fn(Adapted(), strong=0, weak=1, likelihood=Davidson())
    assert score(result.variables, BATTLES.query).shape == (30,)


def test_given_variables_are_where_training_starts_and_stay_the_callers() -> None:
    given = {"params": {"down": jnp.ones((6, 2)), "up": jnp.zeros((2, NUM_MODELS))}}
    given["base"] = {"kernel": jnp.full((6, NUM_MODELS), 2.0)}
    given[COLLECTION] = {"tie": jnp.asarray(1.5)}
    config = TrainingConfig(epochs=1, batch_size=100)
    result = fit(Adapted(), variables=given, likelihood=Davidson(), optimizer=optax.sgd(0.0), training=config)
    jax.tree.map(np.testing.assert_array_equal, result.variables, given)


def test_a_run_goes_on_only_with_what_was_fixed(tmp_path: Path) -> None:
    whole = fit(Adapted(), directory=tmp_path)
    again = fit(Adapted(), directory=training.Resume(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)
    other = {**whole.variables, "base": {"kernel": jnp.zeros((6, NUM_MODELS))}}
    with pytest.raises(InputError, match=r"fixed was .*base.*; resume with the same configuration"):
        fit(Adapted(), directory=training.Resume(tmp_path), variables=other)


class Noisy(nn.Module):
    """Takes ``deterministic`` without a default, and has noise only in training."""

    @nn.compact
    def __call__(self, query: dict, *, deterministic: bool) -> jax.Array:
        return nn.Dense(NUM_MODELS)(nn.Dropout(0.5)(query["embedding"], deterministic=deterministic))


class Sampling(nn.Module):
    stream: str = "dropout"

    @nn.compact
    def __call__(self, query: dict) -> jax.Array:
        scores = nn.Dense(NUM_MODELS)(query["embedding"])
        return scores + jax.random.normal(self.make_rng(self.stream), scores.shape)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, query: dict) -> jax.Array:
        return nn.Dense(NUM_MODELS)(nn.BatchNorm(use_running_average=False)(query["embedding"]))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, query: dict) -> jax.Array:
        return nn.Dense(1)(query["embedding"])[:, 0]


class Constant(nn.Module):
    def __call__(self, query: dict) -> jax.Array:
        return jnp.zeros((query["embedding"].shape[0], NUM_MODELS))


def test_deterministic_is_passed_where_it_is_taken() -> None:
    result = fit(Noisy())
    scores = scoring.apply_module(Noisy(), result.variables, BATTLES.query)
    np.testing.assert_array_equal(scores, Noisy().apply(result.variables, BATTLES.query, deterministic=True))


@pytest.mark.parametrize(
    ("module", "error"),
    [
        (
            Sampling("depth"),
            r'Sampling needs what it is not given: .*"depth".*streams of random numbers dropout, noise',
        ),
        (Sampling(), r'Sampling needs what it is not given: .*"dropout".*random numbers none'),
        (Normalised(), r'Normalised needs what it is not given: .*"batch_stats" is immutable.*params'),
        (Constant(), "Constant has no parameters: there is nothing to train"),
        (Flat(), r"Flat must return scores \[batch, outputs\], got shape \(1,\)"),
        (models.SimilarityWeighted(NUM_MODELS), "SimilarityWeighted has no parameters to initialise; build its memory"),
        (models.NearestNeighbors(NUM_MODELS), "NearestNeighbors has no parameters to initialise; build its memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_module_needs_and_is_not_given_is_one_line_and_nothing_is_written(
    module: nn.Module, error: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error) as caught:
        fit(module, directory=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_missing_variables_are_named() -> None:
    with pytest.raises(InputError, match=r'Adapted needs what it is not given: .*"up"'):
        fit(Adapted(), variables={"params": {"down": jnp.ones((6, 2))}, "base": {"kernel": jnp.ones((6, NUM_MODELS))}})
