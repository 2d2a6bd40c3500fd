"""Wrappers of one pure step, which say how it runs on devices: on one, on all local ones by pmap, or on a mesh."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from routerjax.config import TrainingConfig
from routerjax.errors import InputError
from routerjax.partitioning import RULES, Rules, make_mesh, mesh_axes, shardings
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
            tree: of arrays.
            axis: the axis that is split into parts; None for arrays that every device holds.
        """
        del axis
        return jax.device_put(tree)

    def split(self, battles: PreferenceBatch) -> PreferenceBatch:
        """Send a step's battles to the devices.

        Raises:
            InputError: they cannot be split.
        """
        return self.put(battles, 0)

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


class _Pmap(Wrapper):
    """Runs steps on every local device, the battles split and all else shared.

    The state goes in and comes out without a device axis, so that checkpoints and scoring see plain arrays.
    """

    @property
    def num_parts(self) -> int:
        return jax.local_device_count()

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

        def parts(leaf: Array) -> Array:
            return leaf.reshape(*leaf.shape[:axis], self.num_parts, -1, *leaf.shape[axis + 1 :])

        return jax.device_put(jax.tree.map(parts, tree), self._sharding(*[None] * axis, BATCH_AXIS))

    def split(self, battles: PreferenceBatch) -> PreferenceBatch:
        """Send a step's battles to the devices: the n-th part of them, and the n-th part of the queries.

        Raises:
            InputError: the number of battles or queries is not divisible, or a battle is on a query of another part.
        """
        (rows,) = {leaf.shape[0] for leaf in jax.tree.leaves(dict(battles.query))}
        for count in (rows, battles.weight.shape[0]):
            require_divisible(count, self.num_parts)
        part, query_index = np.divmod(np.asarray(battles.query_index), rows // self.num_parts)
        if np.any(part.reshape(self.num_parts, -1) != np.arange(self.num_parts)[:, None]):
            raise InputError(f"pmap splits a batch into {self.num_parts} parts, each with the queries of its battles")
        return self.put(battles._replace(query_index=query_index.astype(np.int32)), 0)

    def places(self, boxed: PyTree) -> PyTree:
        return jax.tree.map(lambda _: self._sharding(), nn.meta.unbox(boxed))

    def part_shapes(self, tree: PyTree) -> PyTree:
        def of_parts(leaf: Array) -> jax.ShapeDtypeStruct:
            shape = (self.num_parts, *leaf.shape)
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


class _Mesh(Wrapper):
    """Runs steps on a mesh as one program, in which XLA divides the work as the arrays lie.

    Parameters and moments lie as the rules say, from their first value on; the state stays where it is.
    """

    def __init__(self, mesh: jax.sharding.Mesh, rules: Rules) -> None:
        self.mesh, self.rules = mesh, rules

    @property
    def num_parts(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes("batch", self.rules))

    def __call__(
        self, step: Callable[..., tuple[Carry, PyTree]], axes: tuple[PyTree, ...] = (None, 0, None)
    ) -> Callable[..., tuple[Carry, PyTree]]:
        del axes

        def made_for(carry: Carry, *_: PyTree) -> dict[str, Any]:
            places = jax.tree.map(lambda leaf: leaf.sharding, carry)
            return {"donate_argnums": 0, "out_shardings": (places, self._sharding())}

        return _OnMesh(self, step, made_for)

    def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return _OnMesh(self, function, lambda *_: options)

    def put(self, tree: PyTree, axis: int | None = None) -> PyTree:
        if axis is None:
            return jax.device_put(tree, self._sharding())
        for leaf in jax.tree.leaves(tree):
            require_divisible(leaf.shape[axis], self.num_parts)
        return jax.device_put(tree, self._sharding(*[None] * axis, mesh_axes("batch", self.rules)))

    def places(self, boxed: PyTree) -> PyTree:
        return shardings(boxed, self.mesh, self.rules)

    def part_shapes(self, tree: PyTree) -> PyTree:
        def placed(leaf: Array) -> jax.ShapeDtypeStruct:
            place = getattr(leaf, "sharding", self._sharding())
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        return jax.tree.map(placed, tree)

    def start(
        self,
        initialise: Callable[[], Variables],
        variables: Variables | None,
        begin: Callable[[Variables], StateT],
    ) -> StateT:
        boxed = jax.eval_shape(initialise)
        if variables is None:
            places = self.places(boxed)
            variables = self.jit(lambda: nn.meta.unbox(initialise()), out_shardings=places)()
        else:
            boxed = {name: _boxed_like(boxed.get(name), collection) for name, collection in variables.items()}
            places = self.places(boxed)
            variables = jax.tree.map(_placed, variables, places)

        def in_boxes(variables: Variables) -> StateT:
            return begin(nn.meta.replace_boxed(boxed, variables))

        places = self.places(jax.eval_shape(in_boxes, variables))
        # Donated, so that the devices hold what is placed once.
        return self.jit(begin, out_shardings=places, donate_argnums=0)(variables)

    def _sharding(self, *axes: str | tuple[str, ...] | None) -> jax.NamedSharding:
        return jax.NamedSharding(self.mesh, jax.P(*axes))


class _OnMesh:
    """A function compiled for a mesh, and traced under its rules, with the options that its first arguments ask for."""

    def __init__(self, wrapper: _Mesh, function: Callable[..., Any], options: Callable[..., dict[str, Any]]) -> None:
        self._wrapper, self._function, self._options = wrapper, function, options
        self._compiled: Any = None

    def __call__(self, *arguments: PyTree) -> PyTree:
        with self._context(arguments):
            return self._compiled(*arguments)

    def lower(self, *arguments: PyTree) -> jax.stages.Lowered:
        """Trace it, to be compiled ahead of time, as ``jax.jit`` does; arrays or their shapes with shardings."""
        with self._context(arguments):
            return self._compiled.lower(*arguments)

    @contextlib.contextmanager
    def _context(self, arguments: tuple[PyTree, ...]) -> Iterator[None]:
        if self._compiled is None:
            self._compiled = jax.jit(self._function, **self._options(*arguments))
        with jax.set_mesh(self._wrapper.mesh), nn.logical_axis_rules(self._wrapper.rules):
            yield


def _placed(leaf: Any, place: jax.NamedSharding) -> Array:
    """Copy an array to its devices, one part after another, so that the host holds one part at a time."""
    # A view is copied: what is placed is donated later, and its memory must be nobody else's.
    parts = [
        jax.device_put(np.require(leaf[index], requirements="O"), device).block_until_ready()
        for device, index in place.addressable_devices_indices_map(leaf.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, place, parts)


def _boxed_like(boxed: PyTree, arrays: PyTree) -> PyTree:
    """``arrays`` as shapes, in the boxes of what the module makes, where it makes the same ones."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    is_same = jax.tree.structure(nn.meta.unbox(boxed)) == jax.tree.structure(shapes)
    return nn.meta.replace_boxed(boxed, shapes) if is_same else shapes


jit_step = Wrapper()
"""Compiles a pure step for one device: ``jit_step(step)(state, batch, key)``."""

pmap_step = _Pmap()
"""Compiles a pure step for every local device: ``pmap_step(step)(state, pmap_step.split(batch), key)``."""


def mesh_step(mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Wrapper:
    """Make the wrapper of a mesh: ``mesh_step(mesh)(step)`` compiles a pure step.

    Args:
        mesh: see :func:`routerjax.partitioning.make_mesh`.
        rules: along which of its axes the axes of parameters lie, and ``batch``.
    """
    return _Mesh(mesh, rules)


def wrapper_of(training: TrainingConfig) -> Wrapper:
    """The wrapper that ``training.devices`` names.

    Raises:
        InputError: the devices cannot be divided so.
    """
    if training.devices == "mesh":
        return mesh_step(make_mesh(training.model_devices))
    if training.model_devices != 1:
        raise InputError(
            f"training.model_devices={training.model_devices} is of a mesh: set training.devices=mesh, got "
            f"{training.devices}"
        )
    return {"jit": jit_step, "pmap": pmap_step}[training.devices]


def require_divisible(batch_size: int, num_parts: int) -> None:
    """Raise InputError unless every device gets the same number of battles."""
    if batch_size % num_parts:
        raise InputError(f"batch size ({batch_size}) must be divisible by device count ({num_parts})")


def require_one_process() -> None:
    """Raise InputError where JAX runs in several processes: each would train on its own and write the same folder."""
    count = jax.process_count()
    if count > 1:
        raise InputError(
            f"training runs in one JAX process, got {count}: start it on one host, without jax.distributed"
        )
