"""Two wrappers of one pure step: plain jit, and pmap over all local devices."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from routerjax.errors import InputError
from routerjax.training.state import TrainState
from routerjax.training.step import BatchT, Metrics, TrainStep
from routerjax.typing import Array, PreferenceBatch, PyTree

BATCH_AXIS = "batch"

WrappedStep = Callable[[TrainState, BatchT, Array], tuple[TrainState, Metrics]]


def jit_step(train_step: TrainStep[BatchT]) -> WrappedStep[BatchT]:
    """The step on one device; the state is donated, so use the returned one from then on."""

    def on_one_device(state: TrainState, batch: BatchT, key: Array) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, key)

    return jax.jit(on_one_device, donate_argnums=0)


def pmap_step(train_step: TrainStep[BatchT], *, batch_axes: PyTree = 0) -> WrappedStep[BatchT]:
    """The step on every local device, the batch split and the state shared; the state is donated.

    The state goes in and comes out without a device axis, so that checkpoints and scoring see plain arrays.

    Args:
        train_step: see :func:`routerjax.training.make_train_step`.
        batch_axes: which axis of the batch's leaves is the device axis, as ``in_axes`` of ``jax.pmap``.
    """
    return jax.pmap(
        functools.partial(train_step, axis_name=BATCH_AXIS),
        axis_name=BATCH_AXIS,
        in_axes=(None, batch_axes, None),
        out_axes=None,
        donate_argnums=0,
    )


def split_batch(batch: PreferenceBatch, num_devices: int) -> PreferenceBatch:
    """A batch with a leading device axis; each battle takes its query along to its device.

    Raises:
        InputError: the number of battles is not divisible by the number of devices.
    """
    num_battles = batch.query_index.shape[0]
    require_divisible(num_battles, num_devices)
    per_device = num_battles // num_devices
    battles = (batch.model_a, batch.model_b, batch.outcome, batch.weight)
    queries = jax.tree.map(lambda leaf: leaf[batch.query_index], dict(batch.query))
    query, (model_a, model_b, outcome, weight) = jax.tree.map(
        lambda leaf: leaf.reshape(num_devices, per_device, *leaf.shape[1:]), (queries, battles)
    )
    own_index = jax.lax.broadcasted_iota(batch.query_index.dtype, (num_devices, per_device), 1)
    return PreferenceBatch(query, own_index, model_a, model_b, outcome, weight)


def require_divisible(batch_size: int, num_devices: int) -> None:
    """Raise InputError unless every device gets the same number of battles."""
    if batch_size % num_devices:
        raise InputError(f"batch size ({batch_size}) must be divisible by device count ({num_devices})")
