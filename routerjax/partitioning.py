"""Meshes of devices, and along which of their axes the axes of parameters lie: the axes' names are the modules'."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
from flax.linen import spmd

from routerjax.errors import InputError
from routerjax.typing import PyTree

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
"""Pairs of an axis of an array and the axis, or axes, of the mesh that it lies along; the first that is free counts."""

RULES: Rules = (
    ("batch", "data"),
    ("embed", "data"),
    ("rank", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("model_dim", "model"),
)
"""Fully sharded over ``data``, where the battles are too, and tensor parallel over ``model``."""


def make_mesh(model_devices: int = 1) -> jax.sharding.Mesh:
    """Make a mesh of all devices, with the axes ``data`` and ``model``, of which the latter is ``model_devices`` long.

    Raises:
        InputError: the devices cannot be divided so.
    """
    count = jax.device_count()
    if count % model_devices:
        raise InputError(f"training.model_devices must divide the {count} devices, got {model_devices}")
    # linen's logical constraints need Auto.
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((count // model_devices, model_devices), ("data", "model"), axis_types)


def mesh_axes(axis: str, rules: Rules) -> tuple[str, ...]:
    """Axes of the mesh that an axis lies along."""
    (along,) = spmd.logical_to_mesh_axes((axis,), rules) or (None,)
    return () if along is None else (along,) if isinstance(along, str) else tuple(along)


def shardings(boxed: PyTree, mesh: jax.sharding.Mesh, rules: Rules) -> PyTree:
    """Sharding of each array, in the form of the tree without its boxes.

    An axis that the devices do not divide evenly is on all of them, and so is an array without a box.

    Args:
        boxed: arrays or their shapes, in the boxes of ``nn.with_logical_partitioning``.
        mesh: to lie on.
        rules: see :data:`Rules`.
    """

    def sharding(spec: jax.P, leaf: jax.ShapeDtypeStruct) -> jax.NamedSharding:
        def divides(along: str | tuple[str, ...] | None, size: int) -> bool:
            names = () if along is None else (along,) if isinstance(along, str) else along
            return size % math.prod(mesh.shape[name] for name in names) == 0

        kept = [along if divides(along, size) else None for along, size in zip(spec, leaf.shape, strict=False)]
        return jax.NamedSharding(mesh, jax.P(*kept))

    specs = spmd.logical_to_mesh(nn.get_partition_spec(boxed), rules)
    return jax.tree.map(sharding, specs, nn.meta.unbox(boxed), is_leaf=lambda leaf: isinstance(leaf, jax.P))


def require_divisible(batch_size: int, num_parts: int) -> None:
    """Raise InputError unless every device gets the same number of battles."""
    if batch_size % num_parts:
        raise InputError(f"batch size ({batch_size}) must be divisible by device count ({num_parts})")
