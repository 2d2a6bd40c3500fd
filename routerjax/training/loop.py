"""The training loop: steps, validation, the best variables, checkpoints, exact resume, logs."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import tqdm

from routerjax import distributed
from routerjax.config import OptimizerConfig, TrainingConfig, identity_of
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.training.checkpoint import Checkpoints
from routerjax.training.compilation import compile_clock
from routerjax.training.fingerprint import fingerprint
from routerjax.training.finite import check_steps, not_finite
from routerjax.training.hooks import Hook
from routerjax.training.interrupt import deferred_interrupt
from routerjax.training.mesh import wrapper_of
from routerjax.training.metrics_log import MetricsLog
from routerjax.training.optimizer import AdamW
from routerjax.training.parallel import Wrapper
from routerjax.training.profile import StepProfile
from routerjax.training.run import Position, Run
from routerjax.training.sources import Batches, open_source
from routerjax.training.state import TrainState, create_state
from routerjax.training.step import make_validation_sums
from routerjax.training.throughput import StepTimes, workload_of
from routerjax.typing import PreferenceBatch, Variables

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resume:
    """A folder of :func:`fit` whose run goes on from its newest checkpoint; from the start where there is none yet."""

    directory: str | Path


@dataclass(frozen=True)
class FitResult:
    """Result of training.

    Attributes:
        variables: those with the lowest validation loss, on the devices; without validation, the last.
        state: after the last step.
        best_epoch: the epoch that ``variables`` are from, counted from 1.
        best_loss: their validation loss in nats a battle; None without validation.
        history: one row an epoch: epoch, loss, validation_loss, gradient_norm, learning_rate, compile_seconds, and,
            without the time of compilation, the figures of :mod:`routerjax.training.throughput`: battles_per_second,
            tokens_per_second, step_seconds_p50, step_seconds_p90, step_seconds_p99, model_flops_per_second,
            model_flops_utilization (of the devices' peak), input_wait_share (of the time of steps, in which they waited
            for batches from the host), and peak_device_bytes or peak_host_bytes. Without
            validation_loss where there is no validation, without learning_rate where the optimiser says none, without
            tokens where there are none, and without FLOPs where the module does not count them. With skipped_steps
            where ``training.non_finite`` is ``skip``; the other figures but the speed are then of the other steps.
    """

    variables: Variables
    state: TrainState
    best_epoch: int
    best_loss: float | None
    history: tuple[dict[str, float], ...]


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
    Ctrl-C or SIGTERM ends it after the step that runs, whose state is saved.

    Several processes that :func:`jax.distributed.initialize` has joined train one router with the same arguments;
    ``directory`` is one folder that all of them see, and ``hooks`` are called in process 0. They learn what one process
    with as many devices learns.

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
        directory: for ``checkpoints/``, ``metrics.jsonl``, TensorBoard files and the ``profile``; in a
            :class:`Resume`, a run that is there goes on. None writes nothing.
        hooks: are called with the row of each finished epoch, see :attr:`FitResult.history`.

    Raises:
        InputError: the directory holds a run already, or one of another configuration; the batch size does not divide
            over the devices; the weights sum to 0; the loss stops being finite and such steps are not skipped; the
            module needs what it is not given.
        KeyboardInterrupt: Ctrl-C was pressed, or SIGTERM came (:class:`routerjax.errors.PreemptedError`); what was
            finished is saved.
        OSError: a checkpoint or the metrics cannot be written.
    """
    wrapper = wrapper or wrapper_of(training)
    train = open_source(source, training, wrapper)
    held_out = None if validation is None else open_source(validation, training, wrapper)
    num_steps = train.steps_per_epoch * training.epochs
    recipe = AdamW(optimizer) if isinstance(optimizer, OptimizerConfig) else optimizer
    if isinstance(recipe, AdamW):
        recipe = recipe.with_likelihood(likelihood)
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
        "fixed": {name: fingerprint(collection) for name, collection in state.fixed.items()},
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
        len(wrapper.devices),
    )
    run = Run(
        state=state,
        position=Position(),
        train=train,
        validation=held_out,
        training=training,
        run_steps=train.runner(module, likelihood, transformation, wrapper.put(jax.random.key(training.noise_seed))),
        validation_sums=wrapper.jit(make_validation_sums(module, likelihood)),
        learning_rate=recipe.schedule(num_steps) if isinstance(recipe, AdamW) else None,
        workload=workload_of(
            module,
            state.trained,
            state.fixed,
            battles=train.num_battles,
            tokens=train.num_tokens,
            shapes=train.shapes,
            devices=wrapper.devices,
        ),
        wrapper=wrapper,
    )
    is_resumed = isinstance(directory, Resume)
    place = directory.directory if isinstance(directory, Resume) else directory
    folder = None if place is None else Path(place)
    with contextlib.ExitStack() as stack:
        if folder is not None:
            run.checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", keep_last=training.keep_last))
            run.restore(json.loads(json.dumps(identity)), is_resumed=is_resumed)
        traces = None if folder is None else folder / "profile"
        profile = StepProfile(training.profiled_steps, traces, finished=run.steps, total=num_steps)
        if folder is not None and distributed.is_first():
            hooks = (stack.enter_context(MetricsLog(folder, run.position.history)).write, *hooks)
        _run_epochs(run, hooks if distributed.is_first() else (), stack.enter_context(profile))
        best = run.best_variables()
    return FitResult({**run.state.fixed, **best}, run.state, run.best_epoch, run.best_loss, tuple(run.position.history))


def _run_epochs(run: Run, hooks: Sequence[Hook], profile: StepProfile) -> None:
    """Train until the run is over; Ctrl-C ends it after the step that runs."""
    training, steps_per_epoch = run.training, run.train.steps_per_epoch
    with contextlib.ExitStack() as stack:
        clock = stack.enter_context(compile_clock())
        bar = stack.enter_context(
            tqdm.tqdm(
                total=steps_per_epoch * training.epochs,
                initial=run.steps,
                unit="step",
                disable=distributed.hides_bars(),
                delay=2,
            )
        )
        interrupt = stack.enter_context(deferred_interrupt())
        try:
            while not run.is_over:
                distributed.barrier()  # a step's collectives wait for seconds only, and process 0 has hooks to call
                position, times = run.position, StepTimes()
                profile.reach(run.steps, goes_on=position.steps < steps_per_epoch)
                time_before, compiled_before = time.perf_counter(), clock.seconds
                with contextlib.closing(run.run_steps(run.state, position.epoch, position.steps)) as steps:
                    for state, metrics in steps:
                        run.state = state
                        check_steps(
                            metrics,
                            run.train,
                            epoch=position.epoch,
                            start=position.steps,
                            warns=not position.skipped_steps,
                        )
                        count = position.add(metrics)
                        now, compiled = time.perf_counter(), clock.seconds
                        seconds = now - time_before - (compiled - compiled_before)
                        times.add(seconds, count)
                        position.compile_seconds += compiled - compiled_before
                        position.seconds += seconds
                        time_before, compiled_before = now, compiled
                        bar.update(count)
                        bar.set_postfix(epoch=position.epoch + 1, loss=f"{position.loss:.4f}", refresh=False)
                        if run.is_due(count):
                            run.save()
                        interrupt.check_together()
                        if profile.reach(run.steps, goes_on=position.steps < steps_per_epoch):
                            time_before = time.perf_counter()
                if position.skipped_steps == steps_per_epoch:
                    raise not_finite(f"all steps of epoch {position.epoch + 1} were skipped, none being finite")
                row = {
                    "epoch": position.epoch + 1,
                    "loss": position.loss,
                    "gradient_norm": position.gradient_norm_sum / (steps_per_epoch - position.skipped_steps),
                    **run.workload.figures(position.seconds, times),
                    "input_wait_share": position.input_wait_seconds / position.seconds,
                }
                if run.learning_rate is not None:
                    row["learning_rate"] = float(np.asarray(run.learning_rate(run.updates - 1)))
                if training.non_finite == "skip":
                    row["skipped_steps"] = position.skipped_steps
                compiled_before = clock.seconds
                row |= run.validate(interrupt)
                row["compile_seconds"] = position.compile_seconds + clock.seconds - compiled_before
                logger.info("epoch %d: %s", row["epoch"], run.workload.describe(row))
                for hook in hooks:
                    hook(row)
                position.finish_epoch(row)
                is_best = position.epoch in [epoch for _, epoch in position.best]
                if run.is_over or is_best or position.epoch % training.checkpoint_every == 0:
                    run.save()
                interrupt.check()
        except KeyboardInterrupt:
            if interrupt.requested and not interrupt.forced:
                run.save()
                if run.checkpoints is not None:
                    run.checkpoints.wait()
                logger.info(
                    "interrupted after %d epochs and %d steps, which are %s",
                    *(run.position.epoch, run.position.steps, "saved" if run.checkpoints else "lost"),
                )
            raise
        if run.position.epoch < training.epochs:
            logger.info("stopped early: no lower validation loss in %d epochs", training.patience)
