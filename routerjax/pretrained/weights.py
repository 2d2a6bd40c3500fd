"""Tensors of published checkpoints under our names: one strict table for each architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import flax.traverse_util
import jax
import numpy as np
import safetensors

from routerjax.errors import InputError
from routerjax.typing import PyTree

Table = Sequence[tuple[str, str]]
"""Rows of (regular expression of a published name, our path). A path that ends in ``kernel`` is transposed: published
kernels are ``[out, in]``, ours ``[in, out]``."""

BERT_TABLE: Table = (
    (r"embeddings\.word_embeddings\.weight", "token_embedding"),
    (r"embeddings\.position_embeddings\.weight", "position_embedding"),
    (r"embeddings\.token_type_embeddings\.weight", "token_type_embedding"),
    (r"embeddings\.LayerNorm\.weight", "embedding_norm/scale"),
    (r"embeddings\.LayerNorm\.bias", "embedding_norm/bias"),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.weight", r"layer_\1/attention/\2/kernel"),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.bias", r"layer_\1/attention/\2/bias"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.weight", r"layer_\1/attention/out/kernel"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.bias", r"layer_\1/attention/out/bias"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.weight", r"layer_\1/attention_norm/scale"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.bias", r"layer_\1/attention_norm/bias"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.weight", r"layer_\1/mlp_in/kernel"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.bias", r"layer_\1/mlp_in/bias"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.weight", r"layer_\1/mlp_out/kernel"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.bias", r"layer_\1/mlp_out/bias"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.weight", r"layer_\1/mlp_norm/scale"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.bias", r"layer_\1/mlp_norm/bias"),
)
"""Hugging Face's ``BertModel`` -> :class:`routerjax.models.BertEncoder`."""

BERT_IGNORED = (r"embeddings\.position_ids", r"pooler\..*")
"""What a BERT checkpoint holds and mean pooling does not use."""


def read_weights(path: Path, table: Table, expected: PyTree, *, ignored: Sequence[str] = ()) -> PyTree:
    """Read a safetensors file into the form of a module's parameters.

    Args:
        path: the file. A prefix ``bert.`` of its names does not matter.
        table: of the architecture.
        expected: the parameters as ``jax.eval_shape`` of the module's ``init`` gives them.
        ignored: regular expressions of published names that are left out on purpose.

    Returns:
        Nested dictionaries of float32 arrays.

    Raises:
        InputError: the file is damaged, or a tensor is missing (-), extra (+) or of another shape (!); all are listed.
    """
    flat = cast("dict[str, jax.ShapeDtypeStruct]", flax.traverse_util.flatten_dict(dict(expected), sep="/"))
    shapes = {name: leaf.shape for name, leaf in flat.items()}
    found: dict[str, np.ndarray] = {}
    problems = []
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            for published in list(tensors.keys()):
                name = published.removeprefix("bert.")
                if any(re.fullmatch(pattern, name) for pattern in ignored):
                    continue
                matches = [re.sub(pattern, ours, name) for pattern, ours in table if re.fullmatch(pattern, name)]
                if len(matches) != 1 or matches[0] not in shapes:
                    problems.append(f"+ {published}")
                    continue
                tensor = tensors.get_tensor(published).astype(np.float32)
                tensor = tensor.T if matches[0].endswith("kernel") else tensor
                if tensor.shape != shapes[matches[0]]:
                    problems.append(f"! {published}: expected shape {shapes[matches[0]]}, got {tensor.shape}")
                found[matches[0]] = tensor
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}") from error
    problems += [f"- {name}" for name in shapes if name not in found]
    if problems:
        listed = "; ".join(problems[:20]) + ("; ..." if len(problems) > 20 else "")
        raise InputError(f"{path} does not hold the expected tensors (- missing, + extra, ! misshaped): {listed}")
    return jax.tree.map(np.ascontiguousarray, flax.traverse_util.unflatten_dict(found, sep="/"))
