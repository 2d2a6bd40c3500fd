"""The training loop: steps, validation, the best variables, checkpoints, exact resume, logs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import tqdm

from routerjax.config import OptimizerConfig, TrainingConfig, identity_of
from routerjax.errors import InputError
from routerjax.likelihoods import BRADLEY_TERRY, COLLECTION, Likelihood
from routerjax.training.checkpoint import Checkpoints, placed_like, sha256_of
from routerjax.training.compilation import compile_clock
from routerjax.training.interrupt import Interrupt, deferred_interrupt
from routerjax.training.metrics_log import MetricsLog
from routerjax.training.optimizer import AdamW
from routerjax.training.parallel import Wrapper, require_one_process, wrapper_of
from routerjax.training.sources import Batches, Battles, Source, StepRunner, open_source
from routerjax.training.state import TrainState, create_state
from routerjax.training.step import make_validation_sums
from routerjax.typing import Array, PreferenceBatch, Variables

logger = logging.getLogger(__name__)

Hook = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Resume:
    """A folder of :func:`fit` whose run goes on from its newest checkpoint; from the start where there is none yet."""

    directory: str | Path


@dataclass(frozen=True)
class FitResult:
    """Result of training.

    Attributes:
        variables: those with the lowest validation loss; without validation, the last.
        state: after the last step.
        best_epoch: the epoch that ``variables`` are from, counted from 1.
        best_loss: their validation loss in nats a battle; None without validation.
        history: one row an epoch: epoch, loss, validation_loss, gradient_norm, learning_rate, battles_per_second, and
            compile_seconds, which battles_per_second leaves out. Without validation_loss where there is no validation,
            and without learning_rate where the optimiser says none.
    """

    variables: Variables
    state: TrainState
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


def fit(
    module: nn.Module,
    source: PreferenceBatch | Batches,
    validation: PreferenceBatch | Batches | None = None,
    *,
    likelihood: Likelihood = BRADLEY_TERRY,
    optimizer: OptimizerConfig | AdamW | optax.GradientTransformation,
    wrapper: Wrapper | None = None,
    variables: Variables | None = None,
    training: TrainingConfig,
    directory: str | Path | Resume | None = None,
    hooks: Sequence[Hook] = (),
) -> FitResult:
    """Minimise the weighted mean of the loss over ``source``; keep the variables that are best on ``validation``.

    A :class:`PreferenceBatch` lies on the devices, where any number of steps of ``training.batch_size`` battles is one
    program. Other sources come batch by batch from the host, ``training.micro_batches`` of them a step. The same seeds
    give the same variables bit for bit on CPU, also when the run is interrupted, within an epoch too, and resumed.
    Ctrl-C ends it after the step that runs, whose state is saved.

    Collections other than ``params`` and the likelihood's own are not trained; they are in the result as they were.

    Args:
        module: linen, from a query to scores, with or without a ``deterministic``; in training it has the streams of
            random numbers ``dropout`` and ``noise``.
        source: all training battles, or batches of them such as :class:`routerjax.data.TokenBatches`.
        validation: held-out battles, or None to keep the last variables.
        likelihood: its loss is minimised, and its own parameters are trained too.
        optimizer: a configuration of AdamW, :class:`AdamW` with rates by layer, or any transformation of
            ``{"params": ..., "likelihood": ...}``, the latter where the likelihood has parameters.
        wrapper: ``jit_step``, ``pmap_step`` or another; None for the one that ``training.devices`` names. Batches must
            be for as many devices as its ``num_parts``.
        variables: to start from, as :func:`routerjax.training.create_state` takes them; None initialises them.
        training: epochs, patience, batch size, seeds.
        directory: for ``checkpoints/``, ``metrics.jsonl`` and TensorBoard files; in a :class:`Resume`, a run that is
            there goes on. None writes nothing.
        hooks: are called with the row of each finished epoch, see :attr:`FitResult.history`.

    Raises:
        InputError: the directory holds a run already, or one of another configuration; the batch size does not divide
            over the devices; the weights sum to 0; the loss stops being finite; the module needs what it is not given;
            more than one JAX process.
        KeyboardInterrupt: Ctrl-C was pressed; what was finished is saved.
        OSError: a checkpoint or the metrics cannot be written.
    """
    require_one_process()
    wrapper = wrapper or wrapper_of(training)
    train = open_source(source, training, wrapper)
    held_out = None if validation is None else open_source(validation, training, wrapper)
    num_steps = train.steps_per_epoch * training.epochs
    recipe = AdamW(optimizer) if isinstance(optimizer, OptimizerConfig) else optimizer
    if isinstance(recipe, AdamW):
        own = jax.tree.map(lambda _: None, likelihood.initial_params())
        recipe = dataclasses.replace(recipe, depths={"params": recipe.depths, **({COLLECTION: own} if own else {})})
    transformation = recipe.transformation(num_steps) if isinstance(recipe, AdamW) else recipe
    state = create_state(
        module,
        next(iter(train.in_order())).query,
        transformation,
        key=jax.random.key(training.init_seed),
        likelihood=likelihood,
        variables=variables,
        wrapper=wrapper,
    )
    identity = {
        **(identity_of(recipe.config) if isinstance(recipe, AdamW) else {"optimizer": "an optax transformation"}),
        **identity_of(training),
        "likelihood": likelihood.to_dict(),
        "fixed": {name: sha256_of(collection) for name, collection in state.fixed.items()},
        "train_battles": train.num_battles,
        "train_weight": train.total_weight,
        "validation_battles": 0 if held_out is None else held_out.num_battles,
        "steps_per_epoch": train.steps_per_epoch,
    }
    logger.info(
        "%d parameters, %d battles, %d steps on %d device(s)",
        sum(leaf.size for leaf in jax.tree.leaves(state.trained)),
        train.num_battles,
        num_steps,
        len(state.step.devices()),
    )
    run = _Run(
        state=state,
        # On the host: a device holds the parameters once. Without validation the state's own are the best.
        best={} if held_out is None else _on_host(state.trained),
        position=_Position(),
        train=train,
        validation=held_out,
        training=training,
        run_steps=train.runner(module, likelihood, transformation, wrapper.put(jax.random.key(training.noise_seed))),
        validation_sums=wrapper.jit(make_validation_sums(module, likelihood)),
        learning_rate=recipe.schedule(num_steps) if isinstance(recipe, AdamW) else None,
    )
    with contextlib.ExitStack() as stack:
        if directory is not None:
            folder = Path(directory.directory if isinstance(directory, Resume) else directory)
            run.checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
            run.restore(json.loads(json.dumps(identity)), is_resumed=isinstance(directory, Resume))
            hooks = (stack.enter_context(MetricsLog(folder, run.position.history)).write, *hooks)
        _run_epochs(run, hooks)
    best = run.state.trained if held_out is None else placed_like(run.state.trained, run.best)
    position = run.position
    return FitResult(
        {**run.state.fixed, **best}, run.state, position.best_epoch, position.best_loss, tuple(position.history)
    )


@dataclass(kw_only=True)
class _Run:
    """A run: its state, the best variables so far, where it is, and what does not change."""

    state: TrainState
    best: Variables
    position: _Position
    train: Source
    validation: Battles | None
    training: TrainingConfig
    run_steps: StepRunner
    validation_sums: Callable[[Variables, PreferenceBatch], tuple[Array, Array]]
    learning_rate: optax.Schedule | None
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
        self.position = _Position(**note["position"])
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
            raise _not_finite(f"the validation loss is not finite after epoch {position.epoch + 1}")
        if position.best_loss is None or loss < position.best_loss:
            position.best_epoch, position.best_loss = position.epoch + 1, loss
            self.best = _on_host(self.state.trained)
        return {"validation_loss": loss}


def _run_epochs(run: _Run, hooks: Sequence[Hook]) -> None:
    """Train until the run is over; Ctrl-C ends it after the step that runs."""
    training, steps_per_epoch = run.training, run.train.steps_per_epoch
    with contextlib.ExitStack() as stack:
        clock = stack.enter_context(compile_clock())
        bar = stack.enter_context(
            tqdm.tqdm(total=steps_per_epoch * training.epochs, initial=run.steps, unit="step", disable=None, delay=2)
        )
        interrupt = stack.enter_context(deferred_interrupt())
        try:
            while not run.is_over:
                position, time_before, compiled_before = run.position, time.perf_counter(), clock.seconds
                for state, metrics in run.run_steps(run.state, position.epoch, position.steps):
                    run.state = state
                    _require_finite(metrics, position.epoch, run.steps)
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
                    "battles_per_second": run.train.num_battles / position.seconds,
                }
                if run.learning_rate is not None:
                    row["learning_rate"] = float(np.asarray(run.learning_rate(run.steps - 1)))
                compiled_before = clock.seconds
                row |= run.validate(interrupt)
                row["compile_seconds"] = position.compile_seconds + clock.seconds - compiled_before
                if row["compile_seconds"] > 1:
                    logger.info(
                        "epoch %d: compiled for %.1f s, then %.0f battles a second",
                        *(row[name] for name in ("epoch", "compile_seconds", "battles_per_second")),
                    )
                for hook in hooks:
                    hook(row)
                position.finish_epoch(row)
                if run.is_over or position.epoch % training.checkpoint_every == 0:
                    run.save()
                interrupt.check()
        except KeyboardInterrupt:
            if interrupt.requested and not interrupt.forced:
                run.save()
                logger.info(
                    "interrupted after %d epochs and %d steps, which are %s",
                    *(run.position.epoch, run.position.steps, "saved" if run.checkpoints else "lost"),
                )
            raise
        if run.position.epoch < training.epochs:
            logger.info("stopped early: no lower validation loss in %d epochs", training.patience)


def _on_host(variables: Variables) -> Variables:
    """A copy: a view of what the next step donates would change under it."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(variables))


def _require_finite(metrics: Mapping[str, np.ndarray], epoch: int, first_step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(metrics["loss_sum"]) | ~np.isfinite(metrics["gradient_norm"]))
    if bad.size:
        steps = ", ".join(map(str, bad[:3] + first_step))
        raise _not_finite(f"the loss is not finite in epoch {epoch + 1}, first at step {steps}")


def _not_finite(what: str) -> InputError:
    return InputError(
        f"{what}: lower the learning rate or set optimizer.gradient_clip; the last checkpoint is untouched"
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
