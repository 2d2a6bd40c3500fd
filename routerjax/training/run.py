"""A training run: where it is, the best variables so far, its checkpoints, and its validation."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tqdm

from routerjax.config import TrainingConfig
from routerjax.errors import InputError
from routerjax.training.checkpoint import Checkpoints
from routerjax.training.finite import not_finite
from routerjax.training.interrupt import Interrupt
from routerjax.training.sources import Battles, Source, StepRunner
from routerjax.training.state import TrainState
from routerjax.training.throughput import Workload
from routerjax.typing import Array, PreferenceBatch, Variables

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """Position of a run, kept in a checkpoint's note.

    Attributes:
        epoch: finished ones, validation included.
        steps: finished ones of the epoch after those.
        loss_sum, weight_sum, gradient_norm_sum: over these steps.
        seconds, compile_seconds: what they took; compilation is not part of ``seconds``.
        skipped_steps: those of ``steps`` that changed nothing, since they were not finite.
        best_epoch: counted from 1; 0 is none yet.
        best_loss: None is none yet.
        history: see :class:`routerjax.training.FitResult`.
    """

    epoch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    gradient_norm_sum: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    skipped_steps: int = 0
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
        self.skipped_steps += int(np.sum(metrics.get("skipped", 0)))
        return len(metrics["loss_sum"])

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Go to the next epoch's first step."""
        start = Position()
        of_epoch = ("steps", "loss_sum", "weight_sum", "gradient_norm_sum", "seconds", "compile_seconds")
        for name in (*of_epoch, "skipped_steps"):
            setattr(self, name, getattr(start, name))
        self.epoch += 1
        self.history = [*self.history, row]


@dataclass(kw_only=True)
class Run:
    """A run: its state, the best variables so far, where it is, and what does not change."""

    state: TrainState
    best: Variables
    position: Position
    train: Source
    validation: Battles | None
    training: TrainingConfig
    run_steps: StepRunner
    validation_sums: Callable[[Variables, PreferenceBatch], tuple[Array, Array]]
    learning_rate: optax.Schedule | None
    workload: Workload
    checkpoints: Checkpoints | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """If all epochs are finished, or the last ones brought no lower validation loss."""
        # Without validation the best epoch is always the last one.
        since_best = self.position.epoch - self.position.best_epoch
        is_out_of_patience = self.training.patience is not None and since_best >= self.training.patience
        return self.position.epoch >= self.training.epochs or is_out_of_patience

    @property
    def steps(self) -> int:
        """Finished steps."""
        return self.position.epoch * self.train.steps_per_epoch + self.position.steps

    @property
    def updates(self) -> int:
        """Finished steps that were not skipped."""
        before = sum(int(row.get("skipped_steps", 0)) for row in self.position.history)
        return self.steps - before - self.position.skipped_steps

    def restore(self, identity: dict[str, Any], *, is_resumed: bool) -> None:
        """Go to where the newest checkpoint is, if there is one."""
        assert self.checkpoints is not None
        self.identity, folder = identity, self.checkpoints.directory
        if self.checkpoints.latest is None:
            return
        if not is_resumed:
            raise InputError(
                f"{folder.parent} holds a training run already; choose another folder or resume it (--resume)"
            )
        # First: the state of another run may have another form.
        _require_same_run(self.checkpoints.read_note()["identity"], identity, folder)
        _, restored, note = self.checkpoints.restore(self._saved())
        self.state, self.best = restored["state"].replace(fixed=self.state.fixed), restored["best"]
        self.position = Position(**note["position"])
        logger.info(
            "resumed after %d epochs of %d and %d steps",
            *(self.position.epoch, self.training.epochs, self.position.steps),
        )

    def save(self) -> None:
        """Write a checkpoint, unless there is no folder or it is there already."""
        # Steps, and epochs with their validation: each of them makes another checkpoint.
        number = self.steps + self.position.epoch
        if self.checkpoints is not None and number and number != self.checkpoints.latest:
            note = {"identity": self.identity, "position": dataclasses.asdict(self.position)}
            self.checkpoints.save(number, self._saved(), note)

    def _saved(self) -> dict[str, Any]:
        # What is fixed is what the run began with, whose checksum is in the identity.
        return {"state": self.state.replace(fixed={}), "best": self.best}

    def validate(self, interrupt: Interrupt) -> dict[str, float]:
        """Measure the loss on the held-out battles, and keep the variables if none were better."""
        position = self.position
        if self.validation is None:
            position.best_epoch = position.epoch + 1
            return {}
        sums = np.zeros(2)
        for batch in tqdm.tqdm(
            self.validation.in_order(),
            "validation",
            self.validation.num_batches,
            leave=False,
            unit="batch",
            disable=None,
            delay=2,
        ):
            sums += np.asarray(jax.device_get(self.validation_sums(self.state.variables, batch)), np.float64)
            interrupt.check()
        loss = float(sums[0] / sums[1])
        if not math.isfinite(loss):
            raise not_finite(f"the validation loss is not finite after epoch {position.epoch + 1}")
        if position.best_loss is None or loss < position.best_loss:
            position.best_epoch, position.best_loss = position.epoch + 1, loss
            self.best = on_host(self.state.trained)
        return {"validation_loss": loss}


def on_host(variables: Variables) -> Variables:
    """Copy variables to the host: a view of what the next step donates would change under it."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(variables))


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
