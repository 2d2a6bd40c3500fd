"""The training loop: epochs of scanned steps, validation, best parameters, checkpoints, exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from routerjax.config import OptimizerConfig, TrainingConfig, identity_of
from routerjax.errors import InputError
from routerjax.training.checkpoint import Checkpoints
from routerjax.training.metrics_log import MetricsLog
from routerjax.training.order import epoch_order
from routerjax.training.parallel import jit_step, pmap_step, require_divisible
from routerjax.training.state import TrainState, create_state, learning_rate_schedule, make_optimizer
from routerjax.training.step import make_train_step, scan_steps, weighted_loss_sum
from routerjax.typing import Array, PreferenceBatch, PreferenceLoss, PyTree, Variables

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What training leaves.

    Attributes:
        variables: those with the lowest validation loss; without validation, the last.
        best_epoch: the epoch they are from, counted from 1.
        best_loss: their validation loss in nats a battle; None without validation.
        history: one row an epoch: epoch, loss, validation_loss, gradient_norm, learning_rate, battles_per_second.
    """

    variables: Variables
    best_epoch: int
    best_loss: float | None
    history: tuple[dict[str, float], ...]


def fit(
    module: nn.Module,
    train: PreferenceBatch,
    validation: PreferenceBatch | None,
    *,
    loss: PreferenceLoss,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    directory: str | Path,
    resume: bool = False,
    memory: PyTree | None = None,
    progress: bool = True,
) -> FitResult:
    """Minimise the weighted mean of ``loss`` over ``train``; keep the parameters that are best on ``validation``.

    The data lives on the device, and an epoch is one program. The same seeds give the same parameters bit for bit on
    CPU, also when the run is interrupted and resumed.

    Args:
        module: from a query to scores; its family does not matter here.
        train: all training battles.
        validation: held-out battles, or None to keep the last parameters.
        loss: per battle, see :data:`routerjax.typing.PreferenceLoss`.
        optimizer: AdamW and its schedule.
        training: epochs, batch size, seeds, devices.
        directory: for ``checkpoints/``, ``metrics.jsonl`` and TensorBoard files.
        resume: go on from the newest checkpoint in ``directory``; from the start where there is none yet.
        memory: the module's ``memory`` collection.
        progress: show a progress bar.

    Raises:
        InputError: the directory holds a run already, or one of another configuration; the batch size does not divide
            over the devices; the loss stops being finite.
    """
    num_battles = train.query_index.shape[0]
    steps_per_epoch = -(-num_battles // training.batch_size)
    num_steps = steps_per_epoch * training.epochs
    transformation = make_optimizer(optimizer, num_steps)
    example = jax.tree.map(lambda leaf: leaf[:1], dict(train.query))
    state = create_state(module, example, transformation, key=jax.random.key(training.init_seed), memory=memory)
    total_weight = float(np.asarray(train.weight).sum(dtype=np.float64))
    step = make_train_step(module, loss, transformation, weight_per_step=total_weight / steps_per_epoch)
    run = _in_memory_runner(step, training)
    noise_key = jax.random.key(training.noise_seed)

    def run_epoch(state: TrainState, epoch: int) -> tuple[TrainState, dict[str, Array]]:
        order = epoch_order(
            seed=training.order_seed, epoch=epoch, num_battles=num_battles, batch_size=training.batch_size
        )
        return run(state, train, order, noise_key)

    sums = jax.jit(make_validation_sums(module, loss))

    def validate(state: TrainState) -> Array:
        loss_sum, weight_sum = sums(state.variables, cast(PreferenceBatch, validation))
        return loss_sum / weight_sum

    return run_epochs(
        state,
        run_epoch,
        None if validation is None else validate,
        steps_per_epoch=steps_per_epoch,
        optimizer=optimizer,
        training=training,
        identity={
            "train_battles": num_battles,
            "train_weight": total_weight,
            "validation_battles": 0 if validation is None else validation.query_index.shape[0],
        },
        directory=directory,
        resume=resume,
        progress=progress,
    )


def run_epochs(
    state: TrainState,
    run_epoch: Callable[[TrainState, int], tuple[TrainState, dict[str, Array]]],
    validate: Callable[[TrainState], Array] | None,
    *,
    steps_per_epoch: int,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    identity: Mapping[str, Any],
    directory: str | Path,
    resume: bool,
    progress: bool,
) -> FitResult:
    """Epochs, validation, the best parameters, checkpoints, exact resume, logs: what all training has in common.

    Args:
        state: where training starts.
        run_epoch: ``(state, epoch) -> (state, metrics [steps])``; may donate the state.
        validate: ``state -> loss``, or None.
        steps_per_epoch: the same in every epoch.
        optimizer: for the learning rate that is logged.
        training: epochs, patience, checkpoints.
        identity: besides the two configurations, what must be the same for a resumed run to be the same run.
        directory, resume, progress: see :func:`fit`.

    Raises:
        InputError: as :func:`fit`.
    """
    directory = Path(directory)
    num_steps = steps_per_epoch * training.epochs
    schedule = learning_rate_schedule(optimizer, num_steps)
    best = {"params": state.params, "loss": jnp.full((), jnp.inf), "epoch": jnp.zeros((), jnp.int32)}
    note = {
        **identity_of(optimizer),
        **identity_of(training),
        **identity,
        "steps_per_epoch": steps_per_epoch,
    }
    logger.info(
        "%d parameters, %s battles, %d steps on %d device(s)",
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        identity["train_battles"],
        num_steps,
        jax.local_device_count() if training.devices == "pmap" else 1,
    )
    with Checkpoints(directory / "checkpoints") as checkpoints:
        done, history = 0, []
        if resume and checkpoints.latest is not None:
            done, restored, old_note = checkpoints.restore({"state": state, "best": best})
            _require_same_run(old_note["identity"], note, checkpoints.directory)
            state, best, history = restored["state"], restored["best"], old_note["history"]
            logger.info("resumed after epoch %d of %d", done, training.epochs)
        elif checkpoints.latest is not None:
            raise InputError(f"{directory} holds a training run already; choose another folder or resume it (--resume)")
        with (
            MetricsLog(directory, history) as log,
            tqdm.tqdm(total=training.epochs, initial=done, unit="epoch", disable=not progress, delay=2) as bar,
        ):
            for epoch in range(done, training.epochs):
                if _is_out_of_patience(epoch, int(best["epoch"]), training):
                    logger.info("stopped early: no lower validation loss in %d epochs", training.patience)
                    break
                started = time.perf_counter()
                state, metrics = run_epoch(state, epoch)
                metrics = jax.device_get(metrics)
                seconds = time.perf_counter() - started
                first_step = epoch * steps_per_epoch
                _require_finite(metrics, epoch, first_step)
                row = {
                    "epoch": epoch + 1,
                    "loss": float(
                        metrics["loss_sum"].sum(dtype=np.float64) / metrics["weight_sum"].sum(dtype=np.float64)
                    ),
                    "gradient_norm": float(metrics["gradient_norm"].mean()),
                    "learning_rate": float(np.asarray(schedule(first_step + steps_per_epoch - 1))),
                    "battles_per_second": identity["train_battles"] / seconds,
                }
                if validate is None:
                    best = {"params": state.params, "loss": best["loss"], "epoch": jnp.int32(epoch + 1)}
                else:
                    validation_loss = validate(state)
                    if not np.isfinite(validation_loss):
                        raise InputError(
                            f"the validation loss is not finite after epoch {epoch + 1}: lower the learning rate or "
                            "set optimizer.gradient_clip; the last checkpoint is untouched"
                        )
                    row["validation_loss"] = float(validation_loss)
                    if validation_loss < best["loss"]:
                        best = {"params": state.params, "loss": validation_loss, "epoch": jnp.int32(epoch + 1)}
                # The next epoch donates the state; the best parameters must outlive it.
                best = {**best, "params": jax.tree.map(jnp.copy, best["params"])}
                log.write(row)
                history = [*history, row]
                bar.update()
                bar.set_postfix({name: f"{value:.4f}" for name, value in row.items() if name.endswith("loss")})
                if (epoch + 1) % training.checkpoint_every == 0 or epoch + 1 == training.epochs:
                    checkpoints.save(epoch + 1, {"state": state, "best": best}, {"identity": note, "history": history})
    variables = state.replace(params=best["params"]).variables
    best_loss = None if validate is None else float(best["loss"])
    return FitResult(variables, int(best["epoch"]), best_loss, tuple(history))


def make_validation_sums(
    module: nn.Module, loss: PreferenceLoss
) -> Callable[[Variables, PreferenceBatch], tuple[Array, Array]]:
    """``(variables, battles) -> (weighted sum of the loss, sum of the weights)``."""

    def sums(variables: Variables, battles: PreferenceBatch) -> tuple[Array, Array]:
        scores = cast(Array, module.apply(variables, battles.query))
        return weighted_loss_sum(loss, scores, battles), jnp.sum(battles.weight)

    return sums


EpochRunner = Callable[[TrainState, PreferenceBatch, np.ndarray, Array], tuple[TrainState, dict[str, Array]]]


def _in_memory_runner(train_step: Any, training: TrainingConfig) -> EpochRunner:
    if training.devices == "jit":
        run = jit_step(scan_steps(train_step))
        return lambda state, battles, order, key: run(state, (battles, jnp.asarray(order)), key)
    num_devices = jax.local_device_count()
    require_divisible(training.batch_size, num_devices)
    run = pmap_step(scan_steps(train_step), batch_axes=(None, 1))
    return lambda state, battles, order, key: run(
        state, (battles, jnp.asarray(order.reshape(len(order), num_devices, -1))), key
    )


def _is_out_of_patience(epochs_done: int, best_epoch: int, training: TrainingConfig) -> bool:
    # Without validation the best epoch is always the last one.
    return training.patience is not None and epochs_done - best_epoch >= training.patience


def _require_finite(metrics: dict[str, np.ndarray], epoch: int, first_step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(metrics["loss_sum"]) | ~np.isfinite(metrics["gradient_norm"]))
    if bad.size:
        steps = bad[:3] + first_step
        raise InputError(
            f"the loss is not finite in epoch {epoch + 1}, first at step {', '.join(map(str, steps))}: lower the "
            "learning rate or set optimizer.gradient_clip; the last checkpoint is untouched"
        )


def _require_same_run(old: dict[str, Any], new: dict[str, Any], directory: Path) -> None:
    different = [
        f"{name} was {old.get(name)!r}, is {value!r}"
        for name, value in new.items()
        if old.get(name) != value and not (isinstance(value, float) and math.isclose(value, old.get(name, math.nan)))
    ]
    if different:
        raise InputError(f"cannot resume {directory}: {'; '.join(different)}; resume with the same configuration")
