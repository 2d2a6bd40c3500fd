"""Parameters of a router that reads text, from a pretrained folder: where training starts, or all of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from routerjax.models import BertEncoder, BertRouter, EmbedThen, SentenceEmbedding, stack_layers
from routerjax.pretrained import bert_names, count_numbers, read_weights, require_sizes, transformer_folder
from routerjax.typing import Array, PyTree


def pretrained_params(module: nn.Module, folder: Path, *, key: Array | None = None) -> PyTree:
    """Parameters of a router that reads text, with its encoder's from a folder.

    To be trained, with a key: the classifier, whose columns in the folder are other labels if there are any, is always
    initialised, and so is all else of the head that the folder does not hold or whose head is not the architecture's
    own; it is logged. Without a key, nothing is: the folder must hold all.

    Args:
        module: as a :class:`Family` makes it for a featurizer of tokens.
        folder: as :func:`routerjax.features.load_tokens` takes it, with ``model.safetensors``, or shards and their
            index.
        key: initialises what is not taken from the folder; None to take all from there.

    Raises:
        InputError: tensors missing, extra or misshaped; all are listed.
    """
    folder = transformer_folder(folder)
    read: BertEncoder = module.encoder.encoder if isinstance(module, EmbedThen) else cast(BertRouter, module).encoder
    require_sizes(vars(read), count_numbers(folder), folder / "config.json")
    # Layers are read one by one, and stacked afterwards where the module scans over them.
    if isinstance(module, EmbedThen):
        embedding: SentenceEmbedding = module.encoder
        plain = embedding.clone(encoder=embedding.encoder.clone(scan_layers=False, parent=None), parent=None)
        names = bert_names(embedding.encoder.model_type, head=False)
        encoder = read_weights(folder, names, jax.eval_shape(lambda: _init(plain, jax.random.key(0))))
        head = {} if key is None else _initialised(module, key, leave_out="encoder")
        params = {**head, "encoder": {"encoder": _stacked(encoder["encoder"], embedding.encoder)}}
    else:
        router = cast(BertRouter, module)
        plain = router.clone(encoder=router.encoder.clone(scan_layers=False, parent=None), parent=None)
        has_own_head = router.head == "architecture"
        names = bert_names(router.encoder.model_type, head=has_own_head, classifier=key is None)
        initial = None if key is None else _initialised(plain, key, leave_out="encoder")
        params = read_weights(folder, names, jax.eval_shape(lambda: _init(plain, jax.random.key(0))), initial=initial)
        params = {**params, "encoder": _stacked(params["encoder"], router.encoder)}
    return jax.tree.map(jnp.asarray, params)


def _stacked(params: PyTree, encoder: BertEncoder) -> PyTree:
    return stack_layers(params) if encoder.scan_layers else params


def _init(module: nn.Module, key: Array) -> PyTree:
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    return nn.meta.unbox(module.init(key, example))["params"]


@functools.partial(jax.jit, static_argnames=("module", "leave_out"))
def _initialised(module: nn.Module, key: Array, *, leave_out: str) -> PyTree:
    """Parameters but those of one part, which under jit are never made."""
    return {name: leaf for name, leaf in _init(module, key).items() if name != leave_out}
