"""Depths of an encoder's parameters, by which they learn at rates of their own."""

from __future__ import annotations

import re

import jax
import numpy as np

from routerjax.typing import PyTree


def layer_depths(params: PyTree) -> PyTree:
    """Depth of each parameter, see :class:`routerjax.training.AdamW`: 0 of embeddings, 1 of the lowest layer; or None.

    The encoder is what lies below ``encoder``, at any depth of the tree; its layers are ``layer_0``, ``layer_1`` ... or
    a stack ``layers``, whose depths are ``[layers, 1, ...]``. What is in the encoder and in no layer is its embeddings;
    what is in no encoder has no depth.

    Example:
        >>> layer_depths({"encoder": {"layer_0": 0.5, "embedding": 0.25}, "classifier": 1.0})
        {'classifier': None, 'encoder': {'embedding': 0, 'layer_0': 1}}
    """

    def depth(path: tuple[jax.tree_util.KeyEntry, ...], leaf: jax.Array) -> int | np.ndarray | None:
        names = [str(getattr(key, "key", key)) for key in path]
        numbers = [int(name.removeprefix("layer_")) for name in names if re.fullmatch(r"layer_\d+", name)]
        if "encoder" not in names:
            return None
        if "layers" in names:
            return np.arange(1, leaf.shape[0] + 1).reshape(-1, *[1] * (leaf.ndim - 1))
        return numbers[0] + 1 if numbers else 0

    return jax.tree_util.tree_map_with_path(depth, params)
