"""Wrappers of one pure step, which say how it runs on devices: on one, or on all by pmap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from routerjax.errors import InputError
from routerjax.partitioning import require_divisible
from routerjax.training.throughput import Device
from routerjax.typing import Array, PreferenceBatch, PyTree, Variables

BATCH_AXIS = "batch"

Carry = TypeVar("Carry")
StateT = TypeVar("StateT")


class Wrapper:
    """Wrapper of steps: how they run on devices; this one runs them on one.

    What it wraps is pure: ``(carry, *arguments, axis_name=None) -> (carry, metrics)``. The carry is donated, so use the
    returned one from then on, and stays on the devices that it is on.
    """

    @property
    def num_parts(self) -> int:
        """Parts that a step's battles are split into, each of which some device computes."""
        return 1

    @property
    def local_parts(self) -> range:
        """Parts that devices of this process compute: of a batch from the host, it makes these alone."""
        return range(1)

    @property
    def devices(self) -> Sequence[Device]:
        """Devices of all processes that run a step."""
        return jax.local_devices()[:1]

    @property
    def computes_together(self) -> bool:
        """If a function that :meth:`jit` compiles runs on the devices of all processes, which call it together."""
        return False

    def __call__(
        self, step: Callable[..., tuple[Carry, PyTree]], axes: tuple[PyTree, ...] = (None, 0, None)
    ) -> Callable[..., tuple[Carry, PyTree]]:
        """Compile a step. The function also has ``lower``, to be compiled ahead of time, as ``jax.jit``'s have.

        Args:
            step: see :func:`routerjax.training.make_train_step`.
            axes: of each argument, the axis that is split into parts, or None: as ``in_axes`` of ``jax.pmap``.
        """
        del axes
        return jax.jit(step, donate_argnums=0)

    def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Compile what is no step, such as the loss on held-out battles; its arguments are whole."""
        return jax.jit(function, **options)

    def put(self, tree: PyTree, axis: int | None = None) -> PyTree:
        """Send arrays to the devices, so that those that stay the same are sent once.

        Args:
            tree: of arrays, the same ones in every process.
            axis: the axis that is split into parts; None for arrays that every device holds.
        """
        del axis
        return jax.device_put(tree)

    def split(self, battles: PreferenceBatch) -> PreferenceBatch:
        """Send a step's battles to the devices.

        Args:
            battles: of :attr:`local_parts`, with queries counted within these.

        Raises:
            InputError: they cannot be split.
        """
        return self.put(battles, 0)

    def as_global(self, tree: PyTree) -> PyTree:
        """Arrays of a state as arrays of all processes, as checkpoints need them."""
        return tree

    def as_local(self, tree: PyTree) -> PyTree:
        """Arrays of all processes as they lie in a state; undoes :meth:`as_global`."""
        return tree

    def places(self, boxed: PyTree) -> PyTree:
        """Sharding of each array of a state, in the form of the tree without its boxes; None where there is one device.

        Args:
            boxed: arrays or their shapes, in the boxes of ``nn.with_logical_partitioning``.
        """
        return jax.tree.map(lambda _: None, nn.meta.unbox(boxed))

    def part_shapes(self, tree: PyTree) -> PyTree:
        """Shapes and shardings of sums like ``tree`` for each part to add to."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def zeros(self, tree: PyTree) -> PyTree:
        """Zeros like ``tree`` for each part to add to."""
        shapes = self.part_shapes(tree)
        places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        return self.jit(lambda: jax.tree.map(jnp.zeros_like, shapes), out_shardings=places)()

    def start(
        self,
        initialise: Callable[[], Variables],
        variables: Variables | None,
        begin: Callable[[Variables], StateT],
    ) -> StateT:
        """Place the state of a run.

        Args:
            initialise: makes the variables, in boxes that name their axes.
            variables: are copied, and taken instead where they are given.
            begin: from variables to the state.
        """
        if variables is None:
            return begin(nn.meta.unbox(initialise()))
        return begin(jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), variables))


def queries_of_part(battles: PreferenceBatch, parts: int) -> int:
    """Queries in each of ``parts`` equal parts of a batch.

    Raises:
        InputError: the queries, or the battles, cannot be divided so.
    """
    (queries,) = {leaf.shape[0] for leaf in jax.tree.leaves(dict(battles.query))}
    for count in (queries, battles.weight.shape[0]):
        require_divisible(count, parts)
    return queries // parts


def _in_parts(leaf: Array, parts: int, axis: int) -> Array:
    return leaf.reshape(*leaf.shape[:axis], parts, -1, *leaf.shape[axis + 1 :])


class _Pmap(Wrapper):
    """Runs steps on every device of every process, the battles split and all else shared.

    The state goes in and comes out without a device axis, so that checkpoints and scoring see plain arrays. Each
    process has its own, on its local devices; they are equal.
    """

    @property
    def num_parts(self) -> int:
        return jax.device_count()

    @property
    def local_parts(self) -> range:
        count = jax.local_device_count()
        return range(count * jax.process_index(), count * (jax.process_index() + 1))

    @property
    def devices(self) -> Sequence[Device]:
        return jax.devices()

    def __call__(
        self, step: Callable[..., tuple[Carry, PyTree]], axes: tuple[PyTree, ...] = (None, 0, None)
    ) -> Callable[..., tuple[Carry, PyTree]]:
        return jax.pmap(
            functools.partial(step, axis_name=BATCH_AXIS),
            axis_name=BATCH_AXIS,
            in_axes=axes,
            out_axes=(axes[0], None),
            donate_argnums=0,
        )

    def put(self, tree: PyTree, axis: int | None = None) -> PyTree:
        if axis is None:
            return jax.device_put(tree, self._sharding())

        local = (slice(None),) * axis + (slice(self.local_parts.start, self.local_parts.stop),)
        parts = jax.tree.map(lambda leaf: _in_parts(leaf, self.num_parts, axis)[local], tree)
        return jax.device_put(parts, self._sharding(*[None] * axis, BATCH_AXIS))

    def split(self, battles: PreferenceBatch) -> PreferenceBatch:
        """Send a step's battles to the devices: the n-th part of them, and the n-th part of the queries.

        Raises:
            InputError: the number of battles or queries is not divisible, or a battle is on a query of another part.
        """
        parts = len(self.local_parts)
        part, query_index = np.divmod(np.asarray(battles.query_index), queries_of_part(battles, parts))
        if np.any(part.reshape(parts, -1) != np.arange(parts)[:, None]):
            raise InputError(f"pmap splits a batch into {parts} parts, each with the queries of its battles")
        battles = battles._replace(query_index=query_index.astype(np.int32))
        return jax.device_put(jax.tree.map(lambda leaf: _in_parts(leaf, parts, 0), battles), self._sharding(BATCH_AXIS))

    def as_global(self, tree: PyTree) -> PyTree:
        if jax.process_count() == 1:
            return tree
        return self._placed_again(tree, jax.NamedSharding(jax.sharding.Mesh(jax.devices(), (BATCH_AXIS,)), jax.P()))

    def as_local(self, tree: PyTree) -> PyTree:
        return tree if jax.process_count() == 1 else self._placed_again(tree, self._sharding())

    def _placed_again(self, tree: PyTree, sharding: jax.NamedSharding) -> PyTree:
        """Give arrays that each device holds whole another sharding; their buffers stay."""

        def placed(leaf: Array) -> Array:
            buffers = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, buffers)

        return jax.tree.map(placed, tree)

    def places(self, boxed: PyTree) -> PyTree:
        return jax.tree.map(lambda _: self._sharding(), nn.meta.unbox(boxed))

    def part_shapes(self, tree: PyTree) -> PyTree:
        def of_parts(leaf: Array) -> jax.ShapeDtypeStruct:
            shape = (len(self.local_parts), *leaf.shape)
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=self._sharding(BATCH_AXIS))

        return jax.tree.map(of_parts, tree)

    def start(
        self,
        initialise: Callable[[], Variables],
        variables: Variables | None,
        begin: Callable[[Variables], StateT],
    ) -> StateT:
        return self.put(super().start(initialise, variables, begin))

    def _sharding(self, *axes: str | None) -> jax.NamedSharding:
        return jax.NamedSharding(jax.sharding.Mesh(jax.local_devices(), (BATCH_AXIS,)), jax.P(*axes))


jit_step = Wrapper()
"""Compiles a pure step for one device: ``jit_step(step)(state, batch, key)``."""

pmap_step = _Pmap()
"""Compiles a pure step for every device: ``pmap_step(step)(state, pmap_step.split(batch), key)``."""
