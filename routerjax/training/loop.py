"""The training loop: steps, validation, the best parameters, checkpoints, exact resume, logs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tqdm

from routerjax.config import OptimizerConfig, TrainingConfig, identity_of
from routerjax.errors import InputError
from routerjax.likelihoods import Likelihood
from routerjax.training.checkpoint import Checkpoints, placed_like
from routerjax.training.compilation import compile_clock
from routerjax.training.interrupt import deferred_interrupt
from routerjax.training.metrics_log import MetricsLog
from routerjax.training.sources import Battles
from routerjax.training.state import TrainState, learning_rate_schedule
from routerjax.training.step import make_validation_sums
from routerjax.typing import Variables

logger = logging.getLogger(__name__)

StepRunner = Callable[[TrainState, int, int], Iterator[tuple[TrainState, Mapping[str, np.ndarray]]]]
"""``(state, epoch, start) -> (state, metrics [steps]) ...``: an epoch from its ``start``-th step on, in parts of one or
more steps, each of which is finished when it is yielded. The state that was given may be donated."""


@dataclass(frozen=True)
class FitResult:
    """Result of training.

    Attributes:
        variables: those with the lowest validation loss; without validation, the last.
        best_epoch: the epoch they are from, counted from 1.
        best_loss: their validation loss in nats a battle; None without validation.
        history: one row an epoch: epoch, loss, validation_loss, gradient_norm, learning_rate, battles_per_second, and
            compile_seconds, which battles_per_second leaves out.
    """

    variables: Variables
    best_epoch: int
    best_loss: float | None
    history: tuple[dict[str, float], ...]


@dataclass
class _Position:
    """Position of a run, kept in a checkpoint's note.

    Attributes:
        epoch: finished ones, validation included.
        steps: finished ones of the epoch after those.
        loss_sum, weight_sum, gradient_norm_sum: over these steps.
        seconds, compile_seconds: what they took; compilation is not part of ``seconds``.
        best_epoch: counted from 1; 0 is none yet.
        best_loss: None is none yet.
        history: see :class:`FitResult`.
    """

    epoch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    gradient_norm_sum: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean over the battles so far; NaN while none of them has a weight."""
        return self.loss_sum / self.weight_sum if self.weight_sum else math.nan

    def add(self, metrics: Mapping[str, np.ndarray]) -> int:
        """Count finished steps; return how many they are."""
        # One by one: the sums are the same bit for bit in whatever parts the steps come.
        for loss, weight, norm in zip(
            *(metrics[name].tolist() for name in ("loss_sum", "weight_sum", "gradient_norm")), strict=True
        ):
            self.loss_sum, self.weight_sum = self.loss_sum + loss, self.weight_sum + weight
            self.gradient_norm_sum += norm
        self.steps += len(metrics["loss_sum"])
        return len(metrics["loss_sum"])

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Go to the next epoch's first step."""
        start = _Position()
        for name in ("steps", "loss_sum", "weight_sum", "gradient_norm_sum", "seconds", "compile_seconds"):
            setattr(self, name, getattr(start, name))
        self.epoch += 1
        self.history = [*self.history, row]


def run_epochs(
    state: TrainState,
    run_steps: StepRunner,
    train: Battles,
    validation: Battles | None,
    *,
    module: nn.Module,
    likelihood: Likelihood,
    steps_per_epoch: int,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    directory: str | Path,
    resume: bool,
    progress: bool,
) -> FitResult:
    """Epochs, validation, the best parameters, checkpoints, exact resume, logs: what all training has in common.

    Ctrl-C ends it after the step that runs, whose state is saved; the run goes on from there, bit for bit.

    Args:
        state: where training starts.
        run_steps: see :data:`StepRunner`.
        train: what ``run_steps`` trains on.
        validation: held-out battles, or None to keep the last parameters.
        module: from a query to scores, for validation.
        likelihood: of the battles, likewise.
        steps_per_epoch: the same in every epoch.
        optimizer: for the learning rate that is logged.
        training: epochs, patience, checkpoints.
        directory, resume, progress: see :func:`routerjax.training.fit`.

    Raises:
        InputError: as :func:`routerjax.training.fit`.
        KeyboardInterrupt: Ctrl-C was pressed; what was finished is saved.
    """
    directory = Path(directory)
    num_steps = steps_per_epoch * training.epochs
    schedule = learning_rate_schedule(optimizer, num_steps)
    position = _Position()
    # On the host: a device holds the parameters once. Without validation the state's own are the best.
    best = {} if validation is None else _on_host(state.variables)
    validation_sums = jax.jit(make_validation_sums(module, likelihood))
    identity = {
        **identity_of(optimizer),
        **identity_of(training),
        "train_battles": train.num_battles,
        "train_weight": train.total_weight,
        "validation_battles": 0 if validation is None else validation.num_battles,
        "steps_per_epoch": steps_per_epoch,
    }
    logger.info(
        "%d parameters, %d battles, %d steps on %d device(s)",
        sum(leaf.size for leaf in jax.tree.leaves(state.variables)),
        train.num_battles,
        num_steps,
        jax.local_device_count() if training.devices == "pmap" else 1,
    )
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints"))
        if resume and checkpoints.latest is not None:
            # First: the state of another run may have another form.
            _require_same_run(checkpoints.read_note()["identity"], identity, checkpoints.directory)
            _, restored, note = checkpoints.restore({"state": state, "best": best})
            state, best, position = restored["state"], restored["best"], _Position(**note["position"])
            logger.info("resumed after %d epochs of %d and %d steps", position.epoch, training.epochs, position.steps)
        elif checkpoints.latest is not None:
            raise InputError(f"{directory} holds a training run already; choose another folder or resume it (--resume)")
        log = stack.enter_context(MetricsLog(directory, position.history))
        clock = stack.enter_context(compile_clock())
        initial = position.epoch * steps_per_epoch + position.steps
        bar = stack.enter_context(
            tqdm.tqdm(total=num_steps, initial=initial, unit="step", disable=not progress, delay=2)
        )
        interrupt = stack.enter_context(deferred_interrupt())

        def save() -> None:
            # Steps, and epochs with their validation: each of them makes another checkpoint.
            number = position.epoch * (steps_per_epoch + 1) + position.steps
            if number and number != checkpoints.latest:
                described = {"identity": identity, "position": dataclasses.asdict(position)}
                checkpoints.save(number, {"state": state, "best": best}, described)

        try:
            while position.epoch < training.epochs and not _is_out_of_patience(position, training):
                time_before, compiled_before = time.perf_counter(), clock.seconds
                for finished, metrics in run_steps(state, position.epoch, position.steps):
                    state = finished
                    _require_finite(metrics, position.epoch, position.epoch * steps_per_epoch + position.steps)
                    count = position.add(metrics)
                    now, compiled = time.perf_counter(), clock.seconds
                    position.compile_seconds += compiled - compiled_before
                    position.seconds += now - time_before - (compiled - compiled_before)
                    time_before, compiled_before = now, compiled
                    bar.update(count)
                    bar.set_postfix(epoch=position.epoch + 1, loss=f"{position.loss:.4f}", refresh=False)
                    interrupt.check()
                row = {
                    "epoch": position.epoch + 1,
                    "loss": position.loss,
                    "gradient_norm": position.gradient_norm_sum / steps_per_epoch,
                    "learning_rate": float(np.asarray(schedule((position.epoch + 1) * steps_per_epoch - 1))),
                    "battles_per_second": train.num_battles / position.seconds,
                }
                compiled_before = clock.seconds
                if validation is None:
                    position.best_epoch = position.epoch + 1
                else:
                    sums = np.zeros(2)
                    for batch in tqdm.tqdm(
                        validation.in_order(),
                        "validation",
                        validation.num_batches,
                        leave=False,
                        unit="batch",
                        disable=not progress,
                        delay=2,
                    ):
                        sums += np.asarray(jax.device_get(validation_sums(state.variables, batch)), np.float64)
                        interrupt.check()
                    row["validation_loss"] = float(sums[0] / sums[1])
                    _require_finite_validation(row["validation_loss"], position.epoch)
                    if position.best_loss is None or row["validation_loss"] < position.best_loss:
                        position.best_epoch, position.best_loss = position.epoch + 1, row["validation_loss"]
                        best = _on_host(state.variables)
                row["compile_seconds"] = position.compile_seconds + clock.seconds - compiled_before
                if row["compile_seconds"] > 1:
                    logger.info(
                        "epoch %d: compiled for %.1f s, then %.0f battles a second",
                        *(row[name] for name in ("epoch", "compile_seconds", "battles_per_second")),
                    )
                log.write(row)
                position.finish_epoch(row)
                is_last = position.epoch == training.epochs or _is_out_of_patience(position, training)
                if is_last or position.epoch % training.checkpoint_every == 0:
                    save()
                interrupt.check()
        except KeyboardInterrupt:
            if interrupt.requested and not interrupt.forced:
                save()
                logger.info("interrupted after %d epochs and %d steps, which are saved", position.epoch, position.steps)
            raise
        if position.epoch < training.epochs:
            logger.info("stopped early: no lower validation loss in %d epochs", training.patience)
    variables = state.variables if validation is None else placed_like(state.variables, best)
    return FitResult(variables, position.best_epoch, position.best_loss, tuple(position.history))


def _on_host(variables: Variables) -> Variables:
    """A copy: a view of what the next step donates would change under it."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(variables))


def _is_out_of_patience(position: _Position, training: TrainingConfig) -> bool:
    # Without validation the best epoch is always the last one.
    return training.patience is not None and position.epoch - position.best_epoch >= training.patience


def _require_finite(metrics: Mapping[str, np.ndarray], epoch: int, first_step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(metrics["loss_sum"]) | ~np.isfinite(metrics["gradient_norm"]))
    if bad.size:
        steps = bad[:3] + first_step
        raise InputError(
            f"the loss is not finite in epoch {epoch + 1}, first at step {', '.join(map(str, steps))}: lower the "
            "learning rate or set optimizer.gradient_clip; the last checkpoint is untouched"
        )


def _require_finite_validation(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the validation loss is not finite after epoch {epoch + 1}: lower the learning rate or set "
            "optimizer.gradient_clip; the last checkpoint is untouched"
        )


def _require_same_run(old: dict[str, Any], new: dict[str, Any], directory: Path) -> None:
    def is_same(one: object, other: object) -> bool:
        return one == other or (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other))

    different = [
        f"{name} was {old.get(name)!r}, is {value!r}"
        for name, value in new.items()
        if not is_same(old.get(name), value)
    ]
    if different:
        raise InputError(f"cannot resume {directory}: {'; '.join(different)}; resume with the same configuration")
