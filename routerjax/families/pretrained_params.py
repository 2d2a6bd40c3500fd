"""Parameters of a router that reads text, from a pretrained folder: where training starts, or all of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from routerjax.models import (
    FROZEN,
    BertEncoder,
    BertRouter,
    Decoder,
    EmbedThen,
    Encoder,
    SentenceEmbedding,
    describe_encoder,
    encoder_sizes,
    example_tokens,
    stack_layers,
)
from routerjax.pretrained import (
    bert_names,
    count_numbers,
    encoder_names,
    read_weights,
    require_sizes,
    stored_weights,
    transformer_folder,
)
from routerjax.typing import Array, PyTree, Variables


def pretrained_variables(module: nn.Module, folder: Path, key: Array) -> Variables:
    """Variables of a router that reads text, where training starts: its encoder's are those of a folder.

    Args:
        module: as a :class:`Family` makes it for a featurizer of tokens.
        folder: see :func:`pretrained_params`.
        key: initialises all that is not taken from the folder.

    Returns:
        Arrays on the host; those of a decoder are :class:`routerjax.pretrained.StoredTensor`, which are read as they
        are placed on devices.

    Raises:
        InputError: see :func:`pretrained_params`.
    """
    encoder = _encoder_of(module)
    if isinstance(encoder, Decoder):
        return _with_stored_decoder(module, encoder, transformer_folder(folder), key)
    # Under jit, where the encoder is not made only to be thrown away.
    others = jax.jit(lambda: {name: leaves for name, leaves in _variables(module, key).items() if name != "params"})()
    # On the host, so that a device holds them once when training has copied them.
    return jax.device_get({**others, "params": pretrained_params(module, folder, key=key)})


def _encoder_of(module: nn.Module) -> Encoder:
    return module.encoder.encoder if isinstance(module, EmbedThen) else cast(BertRouter, module).encoder


def _with_stored_decoder(module: nn.Module, decoder: Decoder, folder: Path, key: Array) -> Variables:
    """The decoder's weights, in the collection that the module has them in, where they lie; all else initialised."""
    require_sizes(encoder_sizes(decoder), count_numbers(folder), folder / "config.json")
    home = FROZEN if decoder.config.lora_rank else "params"
    depth = 2 if isinstance(module, EmbedThen) else 1  # EmbedThen holds it as encoder/encoder

    def split(variables: Variables) -> tuple[PyTree, Variables]:
        """The decoder's weights, and the variables without them."""
        flat = flax.traverse_util.flatten_dict(dict(variables))
        top = (home, *["encoder"] * depth)
        is_decoder = {path: path[: len(top)] == top and path[-1] not in ADDED for path in flat}
        weights = {("encoder", *path[depth + 1 :]): leaf for path, leaf in flat.items() if is_decoder[path]}
        others = {path: leaf for path, leaf in flat.items() if not is_decoder[path]}
        return flax.traverse_util.unflatten_dict(weights), flax.traverse_util.unflatten_dict(others)

    expected, _ = jax.eval_shape(lambda: split(_variables(module, key)))
    stored = stored_weights(folder, encoder_names(describe_encoder(decoder), folder), expected)
    others = jax.device_get(jax.jit(lambda: split(_variables(module, key))[1])())
    flat: dict[tuple[str, ...], Any] = dict(flax.traverse_util.flatten_dict(others))
    for path, leaf in flax.traverse_util.flatten_dict(stored).items():
        flat[home, *["encoder"] * (depth - 1), *path] = leaf
    return flax.traverse_util.unflatten_dict(flat)


ADDED = ("lora_a", "lora_b", "added_embedding")
"""Parameters of a decoder that no pretrained folder has."""


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
    read = cast(BertEncoder, _encoder_of(module))
    require_sizes(encoder_sizes(read), count_numbers(folder), folder / "config.json")
    # Layers are read one by one, and stacked afterwards where the module scans over them.
    if isinstance(module, EmbedThen):
        embedding: SentenceEmbedding = module.encoder
        plain = embedding.clone(encoder=embedding.encoder.clone(scan_layers=False, parent=None), parent=None)
        names = encoder_names(describe_encoder(embedding.encoder), folder)
        encoder = read_weights(folder, names, jax.eval_shape(lambda: _init(plain, jax.random.key(0))))
        head = {} if key is None else _initialised(module, key, leave_out="encoder")
        params = {**head, "encoder": {"encoder": _stacked(encoder["encoder"], read)}}
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


def _variables(module: nn.Module, key: Array) -> Variables:
    return nn.meta.unbox(module.init(key, example_tokens()))


def _init(module: nn.Module, key: Array) -> PyTree:
    return _variables(module, key)["params"]


@functools.partial(jax.jit, static_argnames=("module", "leave_out"))
def _initialised(module: nn.Module, key: Array, *, leave_out: str) -> PyTree:
    """Parameters but those of one part, which under jit are never made."""
    return {name: leaf for name, leaf in _init(module, key).items() if name != leave_out}
