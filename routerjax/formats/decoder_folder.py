"""Folders of decoders as transformers has them, and what builds on it: tensors and configuration, out and in."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from routerjax.config import AttributeValue
from routerjax.errors import InputError
from routerjax.families import CAUSAL
from routerjax.features import TokenFeaturizer, load_tokens
from routerjax.formats.tokenizer_folder import json_bytes, padding_token, tokenizer_files
from routerjax.models import CausalRouter, Decoder, describe_encoder, example_tokens, merge_adapters
from routerjax.pretrained import (
    INDEX_FILE,
    decoder_class,
    decoder_json,
    decoder_names,
    locate,
    publish_weights,
    read_json,
    read_weights,
    tensor_bytes,
    weights_files,
)
from routerjax.router import Router
from routerjax.typing import PyTree

LM_HEAD = "lm_head.weight"
SCORE = {"score.weight": "classifier/kernel"}
"""The head of a classifier of transformers, which has no bias."""


def merged(router: Router) -> Router:
    """Copy of a router with its adapters, if any, added to the weights."""
    module, featurizer = cast(CausalRouter, router.module), cast(TokenFeaturizer, router.featurizer)
    variables, config = merge_adapters(router.variables, module.encoder.config)
    encoder = Decoder(config)
    return dataclasses.replace(
        router,
        module=module.clone(encoder=encoder, parent=None),
        featurizer=dataclasses.replace(featurizer, encoder=encoder),
        variables=variables,
    )


def unless_whole(router: Router) -> Iterator[str]:
    """Refuse a decoder of the lowest layers alone: other programs would normalise what comes of them."""
    if not cast(CausalRouter, router.module).encoder.config.final_norm:
        yield "the router reads a lower layer (features.layer), which this format has no place for"


def unless_no_bias(router: Router, whose: str) -> Iterator[str]:
    """Refuse a linear head whose bias is not 0: a classifier of transformers on a decoder has none."""
    if np.any(np.asarray(router.variables["params"].get("classifier", {}).get("bias", 0.0))):
        yield (
            f"{whose} on a decoder have no bias, and the router's is not 0: export it as p2l or stablehlo, or train "
            "with the router attribute use_bias=False"
        )


def label_tokens(names: Sequence[str]) -> list[str]:
    """Texts of the tokens that are labels, by the names of the outputs."""
    return [f"<|route:{name}|>" for name in names]


def num_new_labels(module: CausalRouter) -> int:
    """Label tokens that are rows after the vocabulary; 0 where the encoder's added tokens are these labels."""
    return 0 if module.encoder.config.added_tokens >= module.num_models else module.num_models


def decoder_config(router: Router, *, class_name: str, vocab_size: int | None = None) -> dict[str, object]:
    """The ``config.json`` of a router without adapters."""
    described = describe_encoder(cast(CausalRouter, router.module).encoder)
    sizes = {} if vocab_size is None else {"vocab_size": vocab_size}
    return {"architectures": [class_name], **decoder_json(described), **sizes}


def linear_tensors(router: Router, layers: PyTree, head: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Tensors of a router without adapters whose head is linear.

    Args:
        router: see :func:`merged`.
        layers: parameters of the head.
        head: published name -> path in ``layers`` of each tensor of the head.
    """
    params = router.variables["params"]
    encoder = {**params["encoder"], "token_embedding": _token_rows(params["encoder"])}
    tree = {"encoder": {name: leaf for name, leaf in encoder.items() if name != "added_embedding"}}
    return publish(router, {**tree, **layers}, head)


def language_model_files(
    router: Router, label_tokens: Sequence[str]
) -> tuple[dict[str, object], dict[str, np.ndarray], dict[str, bytes]]:
    """Configuration, tensors and tokenizer of a router without adapters whose labels are tokens.

    Args:
        router: see :func:`merged`.
        label_tokens: texts of the labels; the tokenizer gets them unless the encoder's added tokens are these labels.
    """
    featurizer, module = cast(TokenFeaturizer, router.featurizer), cast(CausalRouter, router.module)
    added = label_tokens[: num_new_labels(module)]
    pad_id, pad_token = padding_token(featurizer)
    class_name, size = decoder_class(module.encoder.model_type, "CausalLM"), module.encoder.vocab_size + len(added)
    config = {**decoder_config(router, class_name=class_name, vocab_size=size), "pad_token_id": pad_id}
    files = tokenizer_files(featurizer, pad_token=pad_token, added=added)
    return config, language_model_tensors(router), files


def language_model_tensors(router: Router) -> dict[str, np.ndarray]:
    """Tensors of a router without adapters whose labels are tokens: the last rows of the output layer.

    Where the output layer is not the token table itself, its other rows are read from the folder that the encoder came
    from. The router has no use for them, and a router folder and its devices would else hold a table more.

    Raises:
        InputError: that folder is not there, or its output layer is another one.
    """
    params, module = router.variables["params"], cast(CausalRouter, router.module)
    rows, labels = _token_rows(params["encoder"]), np.asarray(params["label_embedding"]).astype(_dtype(router))
    if num_new_labels(module):
        rows = np.concatenate([rows, labels])
    elif module.encoder.config.tie_embeddings:
        rows = np.concatenate([rows[: -len(labels)], labels])
    tree = {name: leaf for name, leaf in params["encoder"].items() if name != "added_embedding"}
    tensors = publish(router, {"encoder": {**tree, "token_embedding": rows}}, {})
    if not module.encoder.config.tie_embeddings:
        others = _output_rows(cast(TokenFeaturizer, router.featurizer).source, len(rows) - len(labels), rows.shape[1])
        tensors[LM_HEAD] = np.concatenate([others.astype(labels.dtype), labels])
    return tensors


def publish(router: Router, params: PyTree, head: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Parameters under the names of transformers, all in the type that the weights are stored in."""
    config = cast(CausalRouter, router.module).encoder.config
    names = decoder_names(config.model_type, head=head)
    return publish_weights(jax.tree.map(lambda leaf: np.asarray(leaf).astype(_dtype(router)), params), names)


MAX_SHARD_SIZE = "5GB"
"""Default of transformers."""


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_size: str = MAX_SHARD_SIZE) -> None:
    """Write ``model.safetensors``, or shards and their index as transformers has them, with the metadata that it reads.

    Args:
        folder: to write into.
        tensors: by their published names.
        max_shard_size: of a file, such as ``500MB``; a larger tensor has one of its own.
    """
    # Imported here, so that a router is scored without it.
    from huggingface_hub import split_state_dict_into_shards_factory

    pattern = "model{suffix}.safetensors"
    split = split_state_dict_into_shards_factory(
        dict(tensors), get_storage_size=_size, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    for name, held in split.filename_to_tensors.items():
        content = tensor_bytes({tensor: tensors[tensor] for tensor in held}, {"format": "pt"})
        (folder / name).write_bytes(content)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).write_bytes(json_bytes(index))


def _size(tensor: np.ndarray) -> int:
    return tensor.nbytes


def load_decoder_tokens(
    source: str | os.PathLike[str], chosen: Mapping[str, AttributeValue] | None = None
) -> TokenFeaturizer:
    """Featurizer of a decoder's folder; weights that its configuration calls bfloat16 are stored and scored in that.

    Args:
        source: see :func:`routerjax.features.load_tokens`.
        chosen: attributes of the encoder besides.
    """
    config = read_json(locate(source) / "config.json", dict)
    dtype = config.get("dtype", config.get("torch_dtype"))
    types = dict.fromkeys(("param_dtype", "dtype"), "bfloat16") if dtype == "bfloat16" else {}
    return load_tokens(source, chosen={**types, **(chosen or {})})


def read_tensors(folder: Path, module: nn.Module, head: Mapping[str, str], layers: PyTree) -> PyTree:
    """Read the parameters of a folder whose head is linear; the inverse of :func:`linear_tensors`.

    Args:
        folder: with the weights.
        module: a :class:`CausalRouter`.
        head: published name -> path in ``layers`` of each tensor of the head.
        layers: shapes of the head's parameters.
    """
    encoder = _shapes(module)["encoder"]
    return _read(folder, cast(CausalRouter, module).encoder, head, {"encoder": encoder, **layers})


def load_classifier(folder: Path, featurizer: TokenFeaturizer, num_outputs: int) -> tuple[nn.Module, PyTree]:
    """The module and its parameters, of a folder of transformers' classifier."""
    attributes = {"head": "linear", "use_bias": False}
    module = CAUSAL.make_module(num_outputs=num_outputs, attributes=attributes, featurizer=featurizer)
    return module, read_tensors(folder, module, SCORE, {"classifier": _shapes(module)["classifier"]})


def load_language_model(
    folder: Path, featurizer: TokenFeaturizer, num_labels: int
) -> tuple[nn.Module, TokenFeaturizer, PyTree]:
    """The module, its featurizer and parameters, of a folder whose last tokens are the labels."""
    config = cast(Decoder, featurizer.encoder).config
    if config.vocab_size <= num_labels:
        raise InputError(f"{folder}: expected {num_labels} label tokens, got a vocabulary of {config.vocab_size}")
    vocab_size = config.vocab_size - num_labels
    encoder = Decoder(dataclasses.replace(config, vocab_size=vocab_size, added_tokens=num_labels))
    labelled = dataclasses.replace(featurizer, encoder=encoder)
    module = CAUSAL.make_module(num_outputs=num_labels, attributes={"head": "tokens"}, featurizer=labelled)
    shapes = dict(_shapes(cast(nn.Module, module.clone(encoder=featurizer.encoder, parent=None))))
    shapes.pop("label_embedding")
    head = {} if config.tie_embeddings else {LM_HEAD: "output"}
    if head:
        shapes["output"] = jax.ShapeDtypeStruct((config.vocab_size, config.width), config.param_dtype)
    params = _read(folder, cast(Decoder, featurizer.encoder), head, shapes)
    rows = params["encoder"]["token_embedding"]
    output = jnp.asarray(params.get("output", rows)[vocab_size:], jnp.float32)
    tables = {"token_embedding": rows[:vocab_size], "added_embedding": rows[vocab_size:]}
    return module, labelled, {"encoder": {**params["encoder"], **tables}, "label_embedding": output}


def _read(folder: Path, decoder: Decoder, head: Mapping[str, str], shapes: PyTree) -> PyTree:
    config = decoder.config
    names = decoder_names(config.model_type, head=head)
    return jax.tree.map(jnp.asarray, read_weights(folder, names, shapes))


def _shapes(module: nn.Module) -> PyTree:
    return nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), example_tokens()))["params"]


def _dtype(router: Router) -> np.dtype:
    return cast(CausalRouter, router.module).encoder.config.param_dtype


def _token_rows(encoder: PyTree) -> np.ndarray:
    """The token table, with the rows of added tokens after it."""
    tables = (encoder.get(name) for name in ("token_embedding", "added_embedding"))
    return np.concatenate([np.asarray(table) for table in tables if table is not None])


def _output_rows(source: str, count: int, width: int) -> np.ndarray:
    """The first rows of the output layer of a folder."""
    try:
        folder = locate(source, download=False)
    except InputError as error:
        raise InputError(
            f"a language model has an output layer, which is that of the folder the router's encoder came from: {error}"
        ) from error
    for file in weights_files(folder):
        with safetensors.safe_open(file, framework="numpy") as tensors:
            if LM_HEAD in set(tensors.keys()):
                rows = tensors.get_slice(LM_HEAD)[:count]
                if rows.shape == (count, width):
                    return rows
                raise InputError(f"{file}: {LM_HEAD} must have {count} rows of {width}, got {rows.shape}")
    raise InputError(f"{folder} has no {LM_HEAD}, the output layer of the router's encoder")
