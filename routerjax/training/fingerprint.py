"""Fingerprint of arrays by their content alone: the same wherever, and in whatever parts, they lie."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.typing import Array, PyTree

# So many elements are hashed at a time on the host: their intermediate values stay in the processor's cache.
CHUNK = 1 << 16

LARGE = 1 << 22

SEEDS = (0x9E3779B9, 0x85EBCA6B)


def fingerprint(tree: PyTree) -> str:
    """Hash every array's name, type, shape and content.

    An array's content is hashed to 64 bits as a sum, modulo 2^32 twice, over its elements, each mixed with its place.
    Sums need no order, so that devices add up their own parts, and no array is gathered. A change of one element always
    changes the hash; it is no protection from forgery.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    on_devices = [leaf for _, leaf in leaves if _is_hashed_on_devices(leaf)]
    hashes = iter(np.asarray(jax.device_get(_of_arrays(on_devices))) if on_devices else ())
    lines = []
    for path, leaf in leaves:
        content = next(hashes) if _is_hashed_on_devices(leaf) else _of_host_array(np.asarray(leaf))
        name = jax.tree_util.keystr(path)
        lines.append([name, str(leaf.dtype), list(np.shape(leaf)), [int(part) for part in content]])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _is_hashed_on_devices(leaf: object) -> bool:
    """If it is elsewhere than in this host's memory, or so large that it is worth a compilation."""
    return isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable and leaf.size < LARGE and all(device.platform == "cpu" for device in leaf.devices())
    )


def _mixed(values: Any, module: ModuleType) -> Any:
    """Bijection of uint32 in which every bit depends on every bit (``lowbias32`` of C. Wellons' hash prospector)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        values = (values ^ (values >> module.uint32(shift))) * module.uint32(factor)
    return values ^ (values >> module.uint32(16))


def _sums(words: Any, places: Any, module: ModuleType) -> list[Any]:
    return [
        module.sum(_mixed(words ^ _mixed(places ^ module.uint32(seed), module), module), dtype=module.uint32)
        for seed in SEEDS
    ]


def _of_host_array(array: np.ndarray) -> list[np.uint32]:
    flat = np.ascontiguousarray(array).reshape(-1)
    size = min(flat.itemsize, 4)
    flat = flat.view(f"u{size}")
    totals = [np.uint32(0)] * len(SEEDS)
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, CHUNK):
            words = flat[start : start + CHUNK].astype(np.uint32)
            places = np.arange(start, start + words.size, dtype=np.uint64).astype(np.uint32)
            totals = [total + part for total, part in zip(totals, _sums(words, places, np), strict=True)]
    return totals


@jax.jit
def _of_arrays(arrays: Sequence[Array]) -> Array:
    def of_one(array: Array) -> Array:
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(array, f"uint{min(array.dtype.itemsize, 4) * 8}").astype(jnp.uint32)
        # Not a range that is reshaped: each device makes the places of its part alone.
        strides = np.cumprod([1, *reversed(words.shape[1:])])[::-1] if words.ndim else []
        places = [
            jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
            for axis, stride in enumerate(strides)
        ]
        start = jnp.zeros(words.shape, jnp.uint32)
        return jnp.stack(_sums(words, functools.reduce(jnp.add, places, start), jnp))

    return jnp.stack([of_one(array) for array in arrays])
