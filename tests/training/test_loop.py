"""Training runs: what they keep, that a killed one resumes bit for bit, and what they refuse."""

import dataclasses
import itertools
import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import InputError, models, training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.errors import PreemptedError
from routerjax.likelihoods import BradleyTerry, Davidson
from routerjax.training.interrupt import deferred_interrupt
from routerjax.training.throughput import FIGURES
from tests.training.battles import NUM_MODELS, WIDTH, random_battles

TRAIN, VALIDATION = random_battles(), random_battles(seed=1)
MODULE = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=8, noise_std=0.1)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
TRAINING = TrainingConfig(epochs=6, batch_size=16)


def run(directory: Path, **changes: object) -> training.FitResult:
    arguments = {"module": MODULE, "train": TRAIN, "validation": VALIDATION, "resume": False} | changes
    module, train, validation, resume = (arguments.pop(name) for name in ("module", "train", "validation", "resume"))
    return training.fit(
        module,
        train,
        validation,
        **{"optimizer": OPTIMIZER, "training": TRAINING} | arguments,
        directory=training.Resume(directory) if resume else directory,
    )


def assert_same(one: object, other: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_learns_and_writes_what_it_did(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(result.history)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    learned = {"epoch", "loss", "validation_loss", "gradient_norm", "learning_rate"}
    assert set(rows[0]) == learned | set(FIGURES) - {"tokens_per_second", "peak_device_bytes"}
    assert rows[0]["compile_seconds"] > 0
    assert rows[-1]["compile_seconds"] == 0
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_the_best_parameters_are_kept_not_the_last(tmp_path: Path) -> None:
    # Validation labels are the reverse of the training labels: every epoch is worse than the one before.
    reverse = TRAIN._replace(outcome=TRAIN.outcome[:, ::-1])
    result = run(tmp_path, validation=reverse)
    losses_by_epoch = [row["validation_loss"] for row in result.history]
    assert result.best_epoch == 1
    assert result.best_loss == min(losses_by_epoch) < losses_by_epoch[-1]
    scores = MODULE.apply(result.variables, reverse.query)
    again = jnp.average(BradleyTerry().loss({}, scores, reverse), weights=reverse.weight)
    np.testing.assert_allclose(again, result.best_loss, rtol=1e-6)


def test_without_validation_the_last_parameters_are_kept(tmp_path: Path) -> None:
    result = run(tmp_path, validation=None)
    assert (result.best_epoch, result.best_loss) == (6, None)
    assert "validation_loss" not in result.history[0]


def without_speed(history: tuple[dict[str, float], ...]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in FIGURES} for row in history]


def assert_same_run(one: training.FitResult, other: training.FitResult) -> None:
    assert_same(one.variables, other.variables)
    assert (one.best_epoch, one.best_loss) == (other.best_epoch, other.best_loss)
    assert without_speed(one.history) == without_speed(other.history)


def saved_state(directory: Path) -> tuple[int, object]:
    """Number and content of the newest checkpoint."""
    with training.Checkpoints(directory / "checkpoints") as checkpoints:
        optimizer = training.AdamW(OPTIMIZER).transformation(42)
        state = training.create_state(MODULE, TRAIN.query, optimizer, key=jax.random.key(0))
        number, trees, note = checkpoints.restore(
            {"trained": state.trained, "rest": state.replace(trained={}, fixed={})}
        )
        return number, (trees, note["position"]["best"])


class Killed(Exception):
    """Stands for a kill between the checkpoint and the end of the next epoch."""


def at_epoch(epoch: int, act: Callable[[], None]) -> Callable[[Mapping[str, float]], None]:
    """Hook that acts when an epoch is finished, before its checkpoint."""

    def hook(row: Mapping[str, float]) -> None:
        if row["epoch"] == epoch:
            act()

    return hook


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("epochs_before", [0, 3])
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, epochs_before: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", hooks=[at_epoch(epochs_before + 1, kill)])
    resumed = run(tmp_path / "killed", resume=True)
    assert_same_run(resumed, whole)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(resumed.history)
    assert_same(saved_state(tmp_path / "killed"), saved_state(tmp_path / "whole"))


@pytest.mark.parametrize("devices", ["jit", "pmap"])
def test_ctrl_c_within_an_epoch_saves_the_last_step_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, devices: str
) -> None:
    config = dataclasses.replace(TRAINING, batch_size=8, epochs=3, devices=devices, checkpoint_every=2)
    whole = run(tmp_path / "whole", training=config)

    class Interrupted(type(training.wrapper_of(config))):
        def __init__(self, last: int) -> None:
            self.last = last

        def __call__(self, *arguments: object) -> Callable:
            step, calls = super().__call__(*arguments), itertools.count(1)

            def call(*arguments: object) -> object:
                if next(calls) == self.last:
                    signal.raise_signal(signal.SIGINT)
                return step(*arguments)

            return call

    positions = []
    for last_call in (4, 3):  # and again after the run has gone on
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", training=config, resume=bool(positions), wrapper=Interrupted(last_call))
        positions.append(max(int(path.name) for path in (tmp_path / "stopped" / "checkpoints").glob("[0-9]*")))
    assert 4 <= positions[0] < positions[1]
    assert any(position % 14 for position in positions)  # 13 steps an epoch: not at an epoch's end
    assert_same_run(run(tmp_path / "stopped", training=config, resume=True), whole)


def test_sigterm_saves_the_last_step_and_has_a_status_of_its_own(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(PreemptedError):
        run(tmp_path / "stopped", hooks=[at_epoch(3, lambda: signal.raise_signal(signal.SIGTERM))])
    assert saved_state(tmp_path / "stopped")[0] == 3 * (7 + 1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_same_run(run(tmp_path / "stopped", resume=True), whole)


def test_checkpoints_within_epochs_are_of_the_newest_steps_and_the_best_epochs(tmp_path: Path) -> None:
    config = dataclasses.replace(TRAINING, checkpoint_every_steps=3, keep_last=3, keep_best=2)
    reverse = TRAIN._replace(outcome=TRAIN.outcome[:, ::-1])  # every epoch is worse than the one before
    result = run(tmp_path, validation=reverse, training=config)
    assert result.best_epoch == 1
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept[:2] == [7 + 1, 2 * (7 + 1)]
    assert len(kept) == 2 + 3
    assert kept[-1] == 6 * (7 + 1)
    assert_same_run(run(tmp_path, validation=reverse, training=config, resume=True), result)


def test_the_best_epochs_are_kept_however_seldom_others_are_saved(tmp_path: Path) -> None:
    reverse = TRAIN._replace(outcome=TRAIN.outcome[:, ::-1])  # every epoch is worse than the one before
    run(tmp_path, validation=reverse, training=dataclasses.replace(TRAINING, checkpoint_every=100, keep_best=2))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {str(epoch * (7 + 1)) for epoch in (1, 2, 6)}


def test_ctrl_c_after_the_last_check_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def press_twice() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_twice_ends_at_once_and_the_last_checkpoint_counts(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", hooks=[at_epoch(3, press_twice)])
    assert saved_state(tmp_path / "stopped")[0] == 2 * (7 + 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_run(run(tmp_path / "stopped", resume=True), whole)


def test_an_early_stop_between_checkpoints_saves(tmp_path: Path) -> None:
    reverse = TRAIN._replace(outcome=TRAIN.outcome[:, ::-1])
    config = dataclasses.replace(TRAINING, checkpoint_every=100, patience=2)
    stopped = run(tmp_path, validation=reverse, training=config)
    assert len(stopped.history) == 3
    assert saved_state(tmp_path)[0] == 3 * (7 + 1)
    assert_same_run(run(tmp_path, validation=reverse, training=config, resume=True), stopped)


def test_the_device_holds_the_parameters_once(tmp_path: Path) -> None:
    module = dataclasses.replace(MODULE, model_dim=13)
    counts = []

    def kernels() -> int:
        arrays = [array for array in jax.live_arrays() if array.shape == (WIDTH, 13)]
        return len({array.unsafe_buffer_pointer() for array in arrays})

    def count(row: Mapping[str, float]) -> None:
        del row
        deadline = time.monotonic() + 30  # the last checkpoint holds what it writes, until it is written
        while kernels() > 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        counts.append(kernels())

    config = dataclasses.replace(TRAINING, epochs=3)
    with pytest.raises(Killed):
        run(tmp_path, module=module, training=config, hooks=[count, at_epoch(2, kill)])
    run(tmp_path, module=module, training=config, hooks=[count], resume=True)
    assert counts == [3] * 4  # the parameters and Adam's two moments; the best ones are on the disk


def test_a_restored_state_is_where_it_was(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(np.arange(16.0), jax.NamedSharding(mesh, jax.P("data")))
    tree = {"sharded": sharded, "committed": jax.device_put(1.0, jax.devices()[3]), "free": jnp.ones(2)}
    tree["host"] = np.arange(3)
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"tree": tree}, {})
        restored = checkpoints.restore({"tree": tree})[1]["tree"]
    assert_same(restored, tree)
    assert type(restored.pop("host")) is np.ndarray
    for name, array in restored.items():
        assert (array.sharding, array.committed) == (tree[name].sharding, tree[name].committed)


def test_one_device_is_refused_where_several_processes_share_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"jit is one device of one process, got 2 processes: set .*pmap or mesh"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_resumes_to_what_it_was(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert_same(run(tmp_path, resume=True).variables, whole.variables)


def test_eight_devices_train_as_one(tmp_path: Path) -> None:
    module = dataclasses.replace(MODULE, noise_std=0.0)
    one = run(tmp_path / "one", module=module)
    with jax.transfer_guard_device_to_device("disallow"):  # battles and state are placed once, not at each call
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
    with pytest.raises(InputError, match=r"gradient_clip was None, is 1.0; resume with the same"):
        run(tmp_path, resume=True, optimizer=dataclasses.replace(OPTIMIZER, gradient_clip=1.0))
    with pytest.raises(InputError, match=r"likelihood was .*bradley_terry.*, is .*davidson.*; resume with the same"):
        run(tmp_path, resume=True, likelihood=Davidson())
    with pytest.raises(InputError, match=r"optimizer was None, is 'an optax transformation'; resume with the same"):
        run(tmp_path, resume=True, optimizer=optax.sgd(0.1))


def test_without_a_folder_the_run_is_the_same_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows = run(tmp_path / "whole"), []
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    arguments = {"optimizer": OPTIMIZER, "training": TRAINING, "hooks": [rows.append]}
    result = training.fit(MODULE, TRAIN, VALIDATION, **arguments)
    assert_same_run(result, whole)
    assert tuple(rows) == result.history
    assert int(result.state.step) == 6 * 7
    assert not list(Path().iterdir())


def test_an_optax_transformation_trains_and_has_no_rate_to_tell(tmp_path: Path) -> None:
    result = run(tmp_path, optimizer=optax.sgd(0.3), training=dataclasses.replace(TRAINING, epochs=2))
    assert result.history[1]["loss"] < result.history[0]["loss"]
    assert "learning_rate" not in result.history[0]
    again = run(tmp_path, optimizer=optax.sgd(0.3), training=dataclasses.replace(TRAINING, epochs=2), resume=True)
    assert_same_run(again, result)
