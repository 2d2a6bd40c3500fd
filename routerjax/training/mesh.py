"""Wrapper of steps on a mesh of devices, with parameters and moments sharded over them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from routerjax.config import TrainingConfig
from routerjax.errors import InputError
from routerjax.partitioning import RULES, Rules, make_mesh, mesh_axes, require_divisible, shardings
from routerjax.training.parallel import Carry, StateT, Wrapper, jit_step, pmap_step, queries_of_part
from routerjax.training.throughput import Device
from routerjax.typing import Array, PreferenceBatch, PyTree, Variables


class _Mesh(Wrapper):
    """Runs steps on a mesh as one program, in which XLA divides the work as the arrays lie.

    Parameters and moments lie as the rules say, from their first value on; the state stays where it is.
    """

    def __init__(self, mesh: jax.sharding.Mesh, rules: Rules) -> None:
        self.mesh, self.rules = mesh, rules

    @property
    def num_parts(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes("batch", self.rules))

    @property
    def local_parts(self) -> range:
        """Parts that devices of this process compute; several processes may share one.

        Raises:
            InputError: they do not follow one another, as the devices lie in the mesh.
        """
        places = self._sharding(mesh_axes("batch", self.rules)).addressable_devices_indices_map((self.num_parts,))
        parts = sorted({part for place in places.values() if place for part in range(self.num_parts)[place[0]]})
        between = range(parts[0], parts[-1] + 1)
        if len(between) != len(parts):
            raise InputError(f"process {jax.process_index()} has the parts {parts} of a batch, which are not in a row")
        return between

    @property
    def devices(self) -> Sequence[Device]:
        return list(self.mesh.devices.flat)

    @property
    def computes_together(self) -> bool:
        return True

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
        if axis is not None:
            for leaf in jax.tree.leaves(tree):
                require_divisible(leaf.shape[axis], self.num_parts)
        place = self._sharding() if axis is None else self._sharding(*[None] * axis, mesh_axes("batch", self.rules))
        if jax.process_count() == 1:
            return jax.device_put(tree, place)

        def placed(leaf: Array) -> Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(placed(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            whole = np.asarray(leaf)
            return jax.make_array_from_callback(whole.shape, place, whole.__getitem__)

        return jax.tree.map(placed, tree)

    def split(self, battles: PreferenceBatch) -> PreferenceBatch:
        place, parts = self._sharding(mesh_axes("batch", self.rules)), self.local_parts
        first = queries_of_part(battles, len(parts)) * parts.start
        battles = battles._replace(query_index=np.asarray(battles.query_index) + np.int32(first))

        def placed(leaf: Array) -> Array:
            shape = (leaf.shape[0] // len(parts) * self.num_parts, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(place, np.asarray(leaf), shape)

        return jax.tree.map(placed, battles)

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
    if training.devices == "jit" and jax.process_count() > 1:
        raise InputError(
            f"training.devices=jit is one device of one process, got {jax.process_count()} processes: set "
            "training.devices=pmap or mesh"
        )
    if training.model_devices != 1:
        raise InputError(
            f"training.model_devices={training.model_devices} is of a mesh: set training.devices=mesh, got "
            f"{training.devices}"
        )
    return {"jit": jit_step, "pmap": pmap_step}[training.devices]
