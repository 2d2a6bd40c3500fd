"""Routers that read text themselves: the encoder is a part of the router, trained and stored with it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp

from routerjax.config import AttributeValue, coerce
from routerjax.errors import InputError, choose, nearest
from routerjax.features import FeatureSpec, TextTokenizer, mean_is_normalized
from routerjax.models import BertEncoder, BertRouter, EmbedThen, SentenceEmbedding, WithTie, stack_layers
from routerjax.pretrained import TOKENIZER_FILES, bert_names, read_bert_config, read_weights
from routerjax.typing import Array, PyTree

# What a run may say of an encoder that it trains; all else is what the encoder's files say.
CHOICES = ("dropout_rate", "attention_dropout_rate", "dtype", "remat", "scan_layers")
DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class TextReader:
    """The part of a router that reads text.

    Attributes:
        encoder: linen, from tokens to hidden states; its parameters are the router's.
        normalize: whether the mean of the hidden states, which routers of embeddings take, is scaled to unit length.
        files: of the tokenizer, name -> content, byte for byte.
    """

    encoder: BertEncoder
    normalize: bool
    files: Mapping[str, bytes]

    def tokenizer(self, max_length: int) -> TextTokenizer:
        """The real tokenizer, which keeps the first ``max_length`` tokens of a text.

        Raises:
            InputError: no such length, or a tokenizer that is not the encoder's.
        """
        if not 2 <= max_length <= self.encoder.max_length:
            raise InputError(
                f"max_length must be in [2, {self.encoder.max_length}], what the encoder reads, got {max_length}"
            )
        loaded = TextTokenizer(self.files[TOKENIZER_FILE], max_length, self.encoder.padding_id)
        tokens = loaded.tokenizer.get_vocab_size()
        if tokens > self.encoder.vocab_size:
            raise InputError(f"the tokenizer has {tokens} tokens, the encoder only {self.encoder.vocab_size}")
        return loaded

    def spec(self, source: str | os.PathLike[str], max_length: int) -> FeatureSpec:
        """What a router remembers of its tokens."""
        return FeatureSpec(
            kind="tokens",
            source=os.fspath(source),
            width=self.encoder.width,
            fingerprint=self.tokenizer(max_length).fingerprint,
            max_length=max_length,
        )

    def to_dict(self) -> dict[str, object]:
        """All but the files, as JSON holds it."""
        fields = {name: getattr(self.encoder, name) for name in _encoder_types()}
        return {"normalize": self.normalize, "encoder": {**fields, "dtype": str(self.encoder.dtype)}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], files: Mapping[str, bytes]) -> TextReader:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: fields missing or unknown, of another type, or no tokenizer among the files.
        """
        if set(fields) != {"normalize", "encoder"} or set(fields["encoder"]) != set(_encoder_types()):
            raise InputError(f"a text reader has normalize and an encoder's attributes, got {dict(fields)}")
        if TOKENIZER_FILE not in files:
            raise InputError(f"no {TOKENIZER_FILE}")
        encoder = make_encoder(fields["encoder"], {})
        return cls(encoder, cast(bool, coerce(fields["normalize"], bool, "normalize")), files)


def make_encoder(described: Mapping[str, Any], chosen: Mapping[str, AttributeValue]) -> BertEncoder:
    """An encoder as its files describe it, with what a run chooses.

    Raises:
        InputError: a choice that is none of dropout_rate, attention_dropout_rate, dtype, remat, scan_layers; a value of
            another type or out of range.
    """
    for name in chosen:
        if name not in CHOICES:
            raise InputError(
                f"features.encoder_attributes takes {', '.join(CHOICES)}, got {name!r}{nearest(name, CHOICES)}"
            )
    types = _encoder_types()
    checked: dict[str, Any] = {
        name: choose(str(value), DTYPES, "features.encoder_attributes.dtype")
        if name == "dtype"
        else coerce(value, types[name], f"the encoder's {name}")
        for name, value in {**described, **chosen}.items()
    }
    for name in ("dropout_rate", "attention_dropout_rate"):
        if not 0 <= checked[name] < 1:
            raise InputError(f"the encoder's {name} must be in [0, 1), got {checked[name]}")
    return BertEncoder(**checked)


@functools.cache
def _encoder_types() -> dict[str, object]:
    hints = get_type_hints(BertEncoder)
    return {f.name: hints[f.name] for f in dataclasses.fields(BertEncoder) if f.name not in ("parent", "name")}


def load_reader(
    folder: Path, chosen: Mapping[str, AttributeValue] | None = None, *, embeds: bool = False
) -> TextReader:
    """The reader of a pretrained folder: BERT, RoBERTa, XLM-RoBERTa or DistilBERT.

    Args:
        folder: with ``config.json`` and ``tokenizer.json``; see :func:`routerjax.pretrained.locate`.
        chosen: attributes of the encoder other than those that its files say.
        embeds: whether it is read as a sentence encoder, whose files say how it makes an embedding.

    Raises:
        InputError: damaged, of another architecture, or as :func:`make_encoder`.
    """
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if TOKENIZER_FILE not in files:
        raise InputError(f"{folder} holds no {TOKENIZER_FILE}; save its tokenizer as a fast one")
    encoder = make_encoder(read_bert_config(folder).encoder, chosen or {})
    reader = TextReader(encoder, embeds and mean_is_normalized(folder), files)
    try:
        reader.tokenizer(reader.encoder.max_length)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return reader


def pretrained_params(module: nn.Module, folder: Path, *, key: Array | None = None) -> PyTree:
    """Parameters of a router that reads text, with its encoder's from a folder.

    What the folder holds of the head is taken where the module's head is the architecture's own; all else of the head
    is initialised, and said so.

    Args:
        module: as :func:`routerjax.router.make_module` makes it for a reader.
        folder: with ``model.safetensors``, or shards and their index.
        key: initialises what the folder does not hold; None where it must hold all.

    Raises:
        InputError: tensors missing, extra or misshaped; all are listed.
    """
    if isinstance(module, WithTie):
        initial = {} if key is None else _initialised(module, key, leave_out="scorer")
        return {**initial, "scorer": pretrained_params(module.scorer, folder, key=key)}
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
        names = bert_names(router.encoder.model_type, head=router.head == "architecture")
        initial = None if key is None else _initialised(plain, key, leave_out="encoder")
        params = read_weights(folder, names, jax.eval_shape(lambda: _init(plain, jax.random.key(0))), initial=initial)
        params = {**params, "encoder": _stacked(params["encoder"], router.encoder)}
    return jax.tree.map(jnp.asarray, params)


def _stacked(params: PyTree, encoder: BertEncoder) -> PyTree:
    return stack_layers(params) if encoder.scan_layers else params


def _init(module: nn.Module, key: Array) -> PyTree:
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    return nn.meta.unbox(module.init(key, example))["params"]


def _initialised(module: nn.Module, key: Array, *, leave_out: str) -> PyTree:
    """Parameters but those of one part, which under jit are never made."""
    return jax.jit(lambda key: {name: leaf for name, leaf in _init(module, key).items() if name != leave_out})(key)
