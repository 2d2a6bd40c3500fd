"""Training runs: what they keep, that a killed one resumes bit for bit, and what they refuse."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import InputError, losses, models, training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.training import loop
from tests.training.battles import NUM_MODELS, random_battles

TRAIN, VALIDATION = random_battles(), random_battles(seed=1)
MODULE = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=8, noise_std=0.1)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
TRAINING = TrainingConfig(epochs=6, batch_size=16)


def run(directory: Path, **changes: object) -> training.FitResult:
    arguments = {"module": MODULE, "train": TRAIN, "validation": VALIDATION, "resume": False} | changes
    module, train, validation = (arguments.pop(name) for name in ("module", "train", "validation"))
    return training.fit(
        module,
        train,
        validation,
        **{"loss": losses.preference_loss, "optimizer": OPTIMIZER, "training": TRAINING, "progress": False} | arguments,
        directory=directory,
    )


def assert_same(one: object, other: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_learns_and_writes_what_it_did(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(result.history)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]) == {
        "epoch", "loss", "validation_loss", "gradient_norm", "learning_rate", "battles_per_second"
    }  # fmt: skip
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_the_best_parameters_are_kept_not_the_last(tmp_path: Path) -> None:
    # Validation labels are the reverse of the training labels: every epoch is worse than the one before.
    reverse = TRAIN._replace(outcome=TRAIN.outcome[:, ::-1])
    result = run(tmp_path, validation=reverse)
    losses_by_epoch = [row["validation_loss"] for row in result.history]
    assert result.best_epoch == 1
    assert result.best_loss == min(losses_by_epoch) < losses_by_epoch[-1]
    scores = MODULE.apply(result.variables, reverse.query)
    again = jnp.average(losses.preference_loss(scores, reverse), weights=reverse.weight)
    np.testing.assert_allclose(again, result.best_loss, rtol=1e-6)


def test_without_validation_the_last_parameters_are_kept(tmp_path: Path) -> None:
    result = run(tmp_path, validation=None)
    assert (result.best_epoch, result.best_loss) == (6, None)
    assert "validation_loss" not in result.history[0]


class Killed(Exception):
    """Stands for a kill between the checkpoint and the end of the next epoch."""


@pytest.mark.parametrize("epochs_before", [0, 3])
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs_before: int) -> None:
    whole = run(tmp_path / "whole")

    class KilledLog(loop.MetricsLog):
        def write(self, row: dict) -> None:
            if row["epoch"] == epochs_before + 1:
                raise Killed
            super().write(row)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "MetricsLog", KilledLog)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    resumed = run(tmp_path / "killed", resume=True)
    assert_same(resumed.variables, whole.variables)
    assert (resumed.best_epoch, resumed.best_loss) == (whole.best_epoch, whole.best_loss)
    without_speed = [
        [{key: value for key, value in row.items() if key != "battles_per_second"} for row in result.history]
        for result in (whole, resumed)
    ]
    assert without_speed[0] == without_speed[1]
    states = []
    for name in ("whole", "killed"):
        with training.Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            assert checkpoints.latest == 6
            optimizer = training.make_optimizer(OPTIMIZER, 42)
            state = training.create_state(MODULE, TRAIN.query, optimizer, key=jax.random.key(0))
            best = {"params": state.params, "loss": jnp.zeros(()), "epoch": jnp.zeros((), jnp.int32)}
            states.append(checkpoints.restore({"state": state, "best": best})[1])
    assert_same(*states)


def test_a_finished_run_resumes_to_what_it_was(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert_same(run(tmp_path, resume=True).variables, whole.variables)


def test_eight_devices_train_as_one(tmp_path: Path) -> None:
    module = dataclasses.replace(MODULE, noise_std=0.0)
    one = run(tmp_path / "one", module=module)
    eight = run(tmp_path / "eight", module=module, training=dataclasses.replace(TRAINING, devices="pmap"))
    np.testing.assert_allclose([row["loss"] for row in eight.history], [row["loss"] for row in one.history], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), eight.variables, one.variables)
    with pytest.raises(InputError, match=r"batch size \(20\) must be divisible by device count \(8\)"):
        run(tmp_path / "odd", training=dataclasses.replace(TRAINING, batch_size=20, devices="pmap"))


def test_seeds_decide(tmp_path: Path) -> None:
    first = run(tmp_path / "a", validation=None)
    assert_same(run(tmp_path / "b", validation=None).variables, first.variables)
    for name in ("init_seed", "noise_seed", "order_seed"):
        other = run(tmp_path / name, validation=None, training=dataclasses.replace(TRAINING, **{name: 77}))
        kernel = [r.variables["params"]["prompt_projection"]["kernel"] for r in (first, other)]
        assert np.any(np.asarray(kernel[0]) != np.asarray(kernel[1]))


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match=r"holds a training run already.*--resume"):
        run(tmp_path)
    with pytest.raises(InputError, match=r"cannot resume .*: learning_rate was 0.01, is 0.5; resume with the same"):
        run(tmp_path, resume=True, optimizer=OptimizerConfig(learning_rate=0.5))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    embedding = TRAIN.query["embedding"].at[3].set(jnp.inf)
    with pytest.raises(InputError, match=r"not finite in epoch 1, first at step \d.*lower the learning rate"):
        run(tmp_path, train=TRAIN._replace(query={"embedding": embedding}), validation=None)
