"""A training run: where it is, the best variables so far, its checkpoints, and its validation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from routerjax import distributed
from routerjax.config import TrainingConfig
from routerjax.errors import InputError
from routerjax.training.checkpoint import Checkpoints
from routerjax.training.finite import not_finite
from routerjax.training.interrupt import Interrupt
from routerjax.training.parallel import Wrapper
from routerjax.training.prefetch import BATCHES_AHEAD, Prefetch
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
        input_wait_seconds: the part of ``seconds`` in which they waited for batches from the host.
        best: the lowest validation losses, each with its epoch, counted from 1; the lowest first.
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
    input_wait_seconds: float = 0.0
    best: list[tuple[float, int]] = field(default_factory=list)
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
        self.input_wait_seconds += float(np.sum(metrics.get("input_wait_seconds", 0.0)))
        return len(metrics["loss_sum"])

    def finish_epoch(self, row: dict[str, float]) -> None:
        """Go to the next epoch's first step."""
        start, of_run = Position(), ("epoch", "best", "history")
        for setting in dataclasses.fields(start):
            if setting.name not in of_run:
                setattr(self, setting.name, getattr(start, setting.name))
        self.epoch += 1
        self.history = [*self.history, row]


@dataclass(kw_only=True)
class Run:
    """A run: its state, where it is, and what does not change.

    The best variables are those of a checkpoint, or a copy on the devices where the run writes none.
    """

    state: TrainState
    position: Position
    train: Source
    validation: Battles | None
    training: TrainingConfig
    run_steps: StepRunner
    validation_sums: Callable[[Variables, PreferenceBatch], tuple[Array, Array]]
    learning_rate: optax.Schedule | None
    workload: Workload
    wrapper: Wrapper
    checkpoints: Checkpoints | None = None
    best: Variables | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """If all epochs are finished, or the last ones brought no lower validation loss."""
        since_best = self.position.epoch - self.best_epoch
        is_out_of_patience = self.training.patience is not None and since_best >= self.training.patience
        return self.position.epoch >= self.training.epochs or is_out_of_patience

    @property
    def best_epoch(self) -> int:
        """Epoch with the lowest validation loss, counted from 1; without validation, the last one."""
        return self.position.best[0][1] if self.position.best else self.position.epoch

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss; None without validation."""
        return self.position.best[0][0] if self.position.best else None

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
            if is_resumed:
                logger.info("no checkpoint in %s: the run begins anew", folder)
            return
        if not is_resumed:
            raise InputError(
                f"{folder.parent} holds a training run already; choose another folder or resume it (--resume)"
            )
        # First: the state of another run may have another form.
        _require_same_run(self.checkpoints.read_note()["identity"], identity, folder)
        saved = self._saved()
        for leaf in jax.tree.leaves((self.state.trained, self.state.opt_state)):
            leaf.delete()  # its form is what is asked for: the devices need not hold two states
        _, restored, note = self.checkpoints.restore(saved)
        trained, rest = (self.wrapper.as_local(restored[name]) for name in ("trained", "rest"))
        self.state = rest.replace(trained=trained, fixed=self.state.fixed)
        best = [tuple(pair) for pair in note["position"].pop("best")]
        self.position = Position(**note["position"], best=best)
        logger.info(
            "resumed after %d epochs of %d and %d steps",
            *(self.position.epoch, self.training.epochs, self.position.steps),
        )

    @property
    def number(self) -> int:
        """Number of a checkpoint of where the run is: steps, and epochs with their validation, make another one."""
        return self.steps + self.position.epoch

    def _number_after(self, epoch: int) -> int:
        return epoch * (self.train.steps_per_epoch + 1)

    def is_due(self, count: int) -> bool:
        """If a checkpoint within the epoch is due after ``count`` more steps; the last ones' is that of the epoch."""
        every = self.training.checkpoint_every_steps
        is_within = self.position.steps < self.train.steps_per_epoch
        return every is not None and is_within and self.steps // every > (self.steps - count) // every

    def save(self) -> None:
        """Begin to write a checkpoint, unless there is no folder or it is there already."""
        if self.checkpoints is not None and self.number and self.number != self.checkpoints.latest:
            note = {"identity": self.identity, "position": dataclasses.asdict(self.position)}
            chosen = {self._number_after(epoch) for _, epoch in self.position.best}
            self.checkpoints.save(self.number, self._saved(), note, chosen=chosen)

    def _saved(self) -> dict[str, Any]:
        # What is fixed is what the run began with, whose fingerprint is in the identity. What is trained can be read
        # alone, as the best variables are.
        trees = {"trained": self.state.trained, "rest": self.state.replace(trained={}, fixed={})}
        return {name: self.wrapper.as_global(tree) for name, tree in trees.items()}

    def best_variables(self) -> Variables:
        """The trained variables with the lowest validation loss; the last ones where there is no validation."""
        number = self._number_after(self.best_epoch)
        if number == self.number:
            return self.state.trained
        if self.checkpoints is None:
            assert self.best is not None  # a best epoch has ended
            return self.best
        self.checkpoints.wait()
        example = {"trained": self.wrapper.as_global(self.state.trained)}
        _, restored, _ = self.checkpoints.restore(example, number=number)
        return self.wrapper.as_local(restored["trained"])

    def validate(self, interrupt: Interrupt) -> dict[str, float]:
        """Measure the loss on the held-out battles, and keep the variables if none were better."""
        position = self.position
        if self.validation is None:
            return {}
        count, sums = self.validation.num_batches, np.zeros((self.validation.num_batches, 2), np.float32)
        # On a mesh all processes compute each batch together; elsewhere each has its share of them.
        first, stride = (0, 1) if self.wrapper.computes_together else (jax.process_index(), jax.process_count())
        share = itertools.islice(enumerate(self.validation.in_order()), first, None, stride)
        bar = functools.partial(tqdm.tqdm, leave=False, unit="batch", disable=distributed.hides_bars(), delay=2)
        with Prefetch(share, ahead=BATCHES_AHEAD) as batches:
            for index, batch in bar(batches, "validation", len(range(first, count, stride))):
                sums[index] = jax.device_get(self.validation_sums(self.state.variables, batch))
                interrupt.check_together()
        for _ in range(-(-count // stride) - len(range(first, count, stride))):
            interrupt.check_together()  # as often as the processes that have a batch more
        if stride > 1:
            sums = distributed.summed(sums)
        total = np.add.accumulate(sums.astype(np.float64))[-1]  # one after another, in whatever processes they were
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            raise not_finite(f"the validation loss is not finite after epoch {position.epoch + 1}")
        if self.checkpoints is None and (self.best_loss is None or loss < self.best_loss):
            self.best = jax.tree.map(jnp.copy, self.state.trained)
        position.best = sorted([*position.best, (loss, position.epoch + 1)])[: self.training.keep_best]
        return {"validation_loss": loss}


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
