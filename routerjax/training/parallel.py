"""Wrappers of one pure step: plain jit, pmap over all local devices, and either over micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from routerjax.errors import InputError
from routerjax.likelihoods import Likelihood
from routerjax.training.state import TrainState
from routerjax.training.step import BatchT, Metrics, Sums, TrainStep, make_sums, make_update, step_key
from routerjax.typing import Array, PreferenceBatch, PyTree

BATCH_AXIS = "batch"

WrappedStep = Callable[[TrainState, BatchT, Array], tuple[TrainState, Metrics]]


def jit_step(train_step: TrainStep[BatchT]) -> WrappedStep[BatchT]:
    """Compile the step for one device; the state is donated, so use the returned one from then on."""

    def on_one_device(state: TrainState, batch: BatchT, key: Array) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, key)

    return jax.jit(on_one_device, donate_argnums=0)


def pmap_step(train_step: TrainStep[BatchT], *, batch_axes: PyTree = 0) -> WrappedStep[BatchT]:
    """Compile the step for every local device, the batch split and the state shared; the state is donated.

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


def pmap_sharding(device_axis: int | None = None) -> jax.NamedSharding:
    """Sharding of what :func:`pmap_step` takes, so that arrays that stay the same are sent to the devices once.

    pmap sends what it finds elsewhere at each call.

    Args:
        device_axis: axis that is split over the local devices; None for arrays that all of them hold.
    """
    mesh = jax.sharding.Mesh(jax.local_devices(), (BATCH_AXIS,))
    return jax.NamedSharding(mesh, jax.P() if device_axis is None else jax.P(*[None] * device_axis, BATCH_AXIS))


def accumulating_step(
    module: nn.Module,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    weight_per_step: float,
    num_devices: int | None = None,
) -> WrappedStep[Sequence[PreferenceBatch]]:
    """Make a step over micro-batches, whose sums are added one after another: one is held in memory at a time.

    They may differ in shape. Each shape is compiled once, and the update once, so that any mixture of shapes costs no
    further compilation.

    Args:
        module, likelihood, optimizer, weight_per_step: see :func:`routerjax.training.make_train_step`.
        num_devices: the local devices, where leaves have a leading axis of them; None runs on one without that axis.
            Devices add up their own sums, and exchange them once a step.
    """
    axis_name = None if num_devices is None else BATCH_AXIS
    sums, update = make_sums(module, likelihood), make_update(optimizer, weight_per_step)

    def start(zero: Array, state: TrainState) -> Sums:
        return Sums(zero, zero, jax.tree.map(jnp.zeros_like, state.variables))

    def add(total: Sums, state: TrainState, batch: PreferenceBatch, key: Array, index: Array | np.int32) -> Sums:
        key = jax.random.fold_in(step_key(key, state, axis_name=axis_name), index)
        return jax.tree.map(jnp.add, total, sums(state, batch, key))

    finish = functools.partial(update, axis_name=axis_name)
    if num_devices is None:
        zero, start, add = jnp.zeros(()), jax.jit(start), jax.jit(add, donate_argnums=0)
        finish = jax.jit(finish, donate_argnums=0)
    else:
        zero = jax.device_put(np.zeros(num_devices, np.float32), pmap_sharding(0))
        pmap = functools.partial(jax.pmap, axis_name=axis_name, axis_size=num_devices)
        start = pmap(start, in_axes=(0, None), out_axes=0)
        add = pmap(add, in_axes=(0, None, 0, None, None), out_axes=0, donate_argnums=0)
        finish = pmap(finish, in_axes=(None, 0), out_axes=None, donate_argnums=0)

    def run(state: TrainState, batch: Sequence[PreferenceBatch], key: Array) -> tuple[TrainState, Metrics]:
        total = start(zero, state)
        for index, part in enumerate(batch):
            total = add(total, state, part, key, np.int32(index))
        return finish(state, total)

    return run


def split_batch(batch: PreferenceBatch, num_devices: int) -> PreferenceBatch:
    """Give a batch a leading device axis; each battle takes its query along to its device.

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


def require_one_process() -> None:
    """Raise InputError where JAX runs in several processes: each would train on its own and write the same folder."""
    count = jax.process_count()
    if count > 1:
        raise InputError(
            f"training runs in one JAX process, got {count}: start it on one host, without jax.distributed"
        )
