"""Steps that are not finite: the run stops and names their battles, or skips them and is as it was."""

import dataclasses
import logging
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import InputError, training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.training.step import Sums, make_update
from routerjax.typing import BatchShape, PreferenceBatch
from tests.training.battles import NUM_MODELS, random_battles

BAD_PROMPT = 3
BATTLES = random_battles()
BATTLES = BATTLES._replace(
    query={**BATTLES.query, "embedding": BATTLES.query["embedding"].at[BAD_PROMPT, 0].set(1000.0)}
)
BAD_BATTLES = np.flatnonzero(np.asarray(BATTLES.query_index) == BAD_PROMPT)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
CONFIG = TrainingConfig(epochs=2, batch_size=16)
SKIP = dataclasses.replace(CONFIG, non_finite="skip")
STEPS = 7


class Bursting(nn.Module):
    """Linear scores, but infinite ones of some queries."""

    @nn.compact
    def __call__(self, query: dict) -> jax.Array:
        scores = nn.Dense(NUM_MODELS)(query["embedding"])
        return jnp.where(query["embedding"][:, :1] > 100.0, jnp.inf, scores)


def fit(**changes: object) -> training.FitResult:
    arguments = {"source": BATTLES, "optimizer": OPTIMIZER, "training": CONFIG} | changes
    return training.fit(Bursting(), **arguments)


def order(epoch: int) -> np.ndarray:
    arguments = {"seed": CONFIG.order_seed, "num_battles": len(BATTLES.weight), "batch_size": CONFIG.batch_size}
    return training.epoch_order(epoch=epoch, **arguments)


def bad_steps(epoch: int) -> np.ndarray:
    return np.flatnonzero(np.isin(order(epoch), BAD_BATTLES).any(axis=1))


def test_the_run_stops_and_names_the_battles_of_the_step() -> None:
    first = bad_steps(0)[0]
    rows = sorted(row for row in order(0)[first].tolist() if row >= 0)
    listed = ", ".join(map(str, rows[:5]))
    with pytest.raises(
        InputError,
        match=rf"the loss is not finite in epoch 1, first at step {first}.* from {len(rows)} battles: rows {listed}, "
        r"\.\.\. of those.*lower the learning rate.*training.non_finite=skip",
    ):
        fit()


def test_a_step_that_is_skipped_leaves_all_but_its_number_as_it_was() -> None:
    optimizer = training.AdamW(OPTIMIZER).transformation(10)
    state = training.create_state(Bursting(), BATTLES.query, optimizer, key=jax.random.key(0))
    update = jax.jit(make_update(optimizer, 1.0, skip_non_finite=True))
    gradient = jax.tree.map(jnp.ones_like, state.trained)
    state, metrics = update(state, Sums(jnp.float32(2.0), jnp.float32(1.0), gradient))
    assert (metrics["skipped"], metrics["loss_sum"]) == (0, 2.0)
    kernel = gradient["params"]["Dense_0"]["kernel"].at[0, 0].set(jnp.nan)
    broken = {"params": {"Dense_0": {**gradient["params"]["Dense_0"], "kernel": kernel}}}
    for loss, its_gradient in ((2.0, broken), (np.inf, gradient)):
        after, metrics = update(state, Sums(jnp.float32(loss), jnp.float32(1.0), its_gradient))
        assert {name: float(value) for name, value in metrics.items()} == {
            "loss_sum": 0.0, "weight_sum": 0.0, "gradient_norm": 0.0, "skipped": 1.0
        }  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step), state)
        assert after.step == state.step + 1


class Streamed:
    """Batches from the host, of the battles that lie on the devices otherwise."""

    num_battles, num_batches, num_tokens = len(BATTLES.weight), STEPS, 0
    total_weight = float(np.asarray(BATTLES.weight).sum(dtype=np.float64))
    shapes = (BatchShape(CONFIG.batch_size, 1, STEPS),)

    def battles_of(self, *, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        rows = order(epoch)[start:stop].ravel()
        return rows[rows >= 0]

    def shuffled(self, *, seed: int, epoch: int, start: int = 0, **_: object) -> list[PreferenceBatch]:
        return [jax.device_get(training.take(BATTLES, rows)) for rows in order(epoch)[start:]]

    def in_order(self, **_: object) -> list[PreferenceBatch]:
        return self.shuffled(seed=0, epoch=0)


def test_all_devices_skip_the_same_steps_count_them_and_warn_once_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "routerjax")
    learned = []
    for devices, source in (("jit", BATTLES), ("pmap", BATTLES), ("mesh", BATTLES), ("jit", Streamed())):
        caplog.clear()
        result = fit(source=source, training=dataclasses.replace(SKIP, devices=devices))
        assert [row["skipped_steps"] for row in result.history] == [len(bad_steps(0)), len(bad_steps(1))]
        assert [record.message.split("first at step ")[1].split()[0].strip(",") for record in caplog.records] == [
            str(bad_steps(0)[0]), str(STEPS + bad_steps(1)[0])
        ]  # fmt: skip
        assert all(np.isfinite(row["loss"]) for row in result.history)
        schedule = training.learning_rate_schedule(OPTIMIZER, 2 * STEPS)
        updates = 2 * STEPS - sum(row["skipped_steps"] for row in result.history)
        assert result.history[-1]["learning_rate"] == pytest.approx(float(schedule(updates - 1)))
        learned.append(result.variables)
    for other in learned[1:]:
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6), learned[0], other)


def test_a_run_that_stopped_goes_on_with_skipping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        fit(directory=tmp_path)
    resumed = fit(directory=training.Resume(tmp_path), training=SKIP)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, fit(training=SKIP).variables)


def test_an_epoch_of_nothing_but_such_steps_stops_the_run() -> None:
    with pytest.raises(InputError, match="all steps of epoch 1 were skipped"):
        fit(training=dataclasses.replace(SKIP, batch_size=100))
