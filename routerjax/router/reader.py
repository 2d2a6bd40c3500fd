"""Routers that read text themselves: the encoder is a part of the router, trained and stored with it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from routerjax.config import AttributeValue, Truncation
from routerjax.errors import InputError, choose, nearest
from routerjax.features import FeatureSpec, TextTokenizer, tokenizer_for
from routerjax.models import (
    POOLINGS,
    BertEncoder,
    BertRouter,
    EmbedThen,
    Normalize,
    Pooling,
    SentenceEmbedding,
    stack_layers,
)
from routerjax.pretrained import (
    TOKENIZER_FILE,
    SentenceModules,
    bert_names,
    configured_tokenizer,
    count_numbers,
    lowercased,
    read_bert_encoder,
    read_sentence_modules,
    read_tokenizer_files,
    read_weights,
    require_sizes,
    tokenizer_config,
    transformer_folder,
    truncation_side,
)
from routerjax.typing import Array, PyTree
from routerjax.validation import coerce, field_types, typed

# What a run may say of an encoder that it trains; all else is what the encoder's files say.
WHOSE_CHOICES = "features.encoder_attributes"
CHOICES = ("dropout_rate", "attention_dropout_rate", "dtype", "remat", "scan_layers")
DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
SIZES = ("vocab_size", "width", "num_layers", "num_heads", "mlp_dim", "max_positions")


@dataclass(frozen=True, eq=False)
class TextReader:
    """The part of a router that reads text.

    Attributes:
        encoder: linen, from tokens to hidden states; its parameters are the router's.
        normalize: scale the embedding, which routers of embeddings take, to unit length.
        files: of the tokenizer, name -> content, byte for byte.
        pooling: how hidden states become that embedding; see :class:`routerjax.models.SentenceEmbedding`.
        prefix: put before each text.
        lowercase: lower a text's case before all that the tokenizer's files say.

    Raises:
        InputError: no tokenizer among the files, or a damaged configuration of it.
    """

    encoder: BertEncoder
    normalize: bool
    files: Mapping[str, bytes]
    pooling: tuple[Pooling, ...] = ("mean",)
    prefix: str = ""
    lowercase: bool = False

    def __post_init__(self) -> None:
        if TOKENIZER_FILE not in self.files:
            raise InputError(f"no {TOKENIZER_FILE}")
        _ = self.tokenizer_config  # damage is said now, not by an export after the training

    @property
    def embedding(self) -> SentenceEmbedding:
        """The embedding of a text that a router of embeddings takes, as a module with the encoder in it."""
        return SentenceEmbedding(self.encoder, self.pooling, (Normalize(),) if self.normalize else ())

    @functools.cached_property
    def tokenizer_config(self) -> Mapping[str, object]:
        """Content of ``tokenizer_config.json``; empty where there is none."""
        return tokenizer_config(self.files)

    @functools.cached_property
    def truncation_side(self) -> Truncation:
        """Side from which the tokenizer's files cut a longer text."""
        return truncation_side(self.files)

    @functools.cached_property
    def _tokenizer_json(self) -> bytes:
        configured = configured_tokenizer(self.files, self.encoder.model_type)
        return lowercased(configured) if self.lowercase else configured

    @functools.cached_property
    def _tokenizers(self) -> dict[tuple[int, Truncation], TextTokenizer]:
        return {}

    def tokenizer(self, max_length: int, truncation: Truncation | None = None) -> TextTokenizer:
        """The real tokenizer, which keeps ``max_length`` tokens of a text.

        Args:
            max_length: special tokens included.
            truncation: what is left out of a longer text; None for what the files say.

        Raises:
            InputError: no such length or truncation, or a tokenizer that is not the encoder's.
        """
        key = max_length, truncation or self.truncation_side
        if key not in self._tokenizers:  # large ones take seconds to parse
            self._tokenizers[key] = tokenizer_for(self.encoder, self._tokenizer_json, *key, prefix=self.prefix)
        return self._tokenizers[key]

    def for_scoring(self) -> TextReader:
        """Copy with dtype=float32 and remat=False, for inference: they are choices of training alone.

        Scores are thus the same wherever they are computed, and those of every format that a router is exported to.
        """
        exact = {"dtype": DTYPES["float32"], "remat": False}
        if all(getattr(self.encoder, name) == value for name, value in exact.items()):
            return self
        return dataclasses.replace(self, encoder=self.encoder.clone(**exact, parent=None))

    def spec(
        self, source: str | os.PathLike[str], max_length: int, truncation: Truncation | None = None
    ) -> FeatureSpec:
        """Specification of the tokens, which a router keeps; see :meth:`tokenizer`."""
        tokenizer = self.tokenizer(max_length, truncation)
        return FeatureSpec(
            kind="tokens",
            source=os.fspath(source),
            width=self.encoder.width,
            fingerprint=tokenizer.fingerprint,
            max_length=max_length,
            truncation=tokenizer.truncation,
        )

    def to_dict(self) -> dict[str, object]:
        """Return all but the files, as JSON holds it."""
        fields = {name: getattr(self.encoder, name) for name in _encoder_types()}
        return {
            "normalize": self.normalize,
            "pooling": list(self.pooling),
            "prefix": self.prefix,
            "lowercase": self.lowercase,
            "encoder": {**fields, "dtype": str(self.encoder.dtype)},
        }

    @classmethod
    def from_dict(cls, fields: object, files: Mapping[str, bytes]) -> TextReader:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: fields missing or unknown, of another type or out of range, or no tokenizer among the files.
        """
        if not isinstance(fields, Mapping) or set(fields) != {"normalize", "pooling", "prefix", "lowercase", "encoder"}:
            raise InputError(f"a text reader has normalize, pooling, prefix, lowercase and an encoder, got {fields!r}")
        described, types = fields["encoder"], _encoder_types()
        if not isinstance(described, Mapping) or set(described) != set(types):
            raise InputError(f"reader.encoder has {', '.join(types)}; got {described!r}")
        encoder = BertEncoder(**_checked(described, "reader.encoder"))
        normalize = cast(bool, coerce(fields["normalize"], bool, "reader.normalize"))
        prefix = cast(str, coerce(fields["prefix"], str, "reader.prefix"))
        if not isinstance(fields["pooling"], list) or not fields["pooling"]:
            raise InputError(
                f"reader.pooling must list one or more of {', '.join(POOLINGS)}, got {fields['pooling']!r}"
            )
        for mode in fields["pooling"]:
            choose(mode, cast("Mapping[str, object]", POOLINGS), "reader.pooling")
        lowercase = coerce(fields["lowercase"], bool, "reader.lowercase")
        return cls(encoder, normalize, files, tuple(fields["pooling"]), prefix, lowercase)


def encoder_sizes(encoder: BertEncoder) -> dict[str, int]:
    """Sizes of an encoder, as :func:`routerjax.pretrained.require_sizes` takes them."""
    return {name: getattr(encoder, name) for name in SIZES}


def _checked(attributes: Mapping[str, object], whose: str) -> dict[str, Any]:
    """Attributes of an encoder in their types; an error calls them ``whose.name``.

    Raises:
        InputError: a value of another type or out of range.
    """
    types, checked = _encoder_types(), {}
    for name, value in attributes.items():
        what = f"{whose}.{name}"
        checked[name] = choose(str(value), DTYPES, what) if name == "dtype" else coerce(value, types[name], what)
    if "num_heads" in checked and checked["width"] % checked["num_heads"] != 0:
        raise InputError(f"{whose}.num_heads ({checked['num_heads']}) must divide its width ({checked['width']})")
    return checked


def typed_choices(chosen: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Attributes of an encoder that is trained, in their types; text, as a command line gives it, is read by its type.

    Raises:
        InputError: no such choice, or a value of another type.
    """
    _require_choices(chosen)
    return typed(chosen, {**_encoder_types(), "dtype": str}, WHOSE_CHOICES)


def _require_choices(names: Iterable[str]) -> None:
    for name in names:
        if name not in CHOICES:
            raise InputError(f"{WHOSE_CHOICES} takes {', '.join(CHOICES)}, got {name!r}{nearest(name, CHOICES)}")


def _encoder_types() -> dict[str, object]:
    return {name: kind for name, kind in field_types(BertEncoder).items() if name not in ("parent", "name")}


def load_reader(
    folder: Path, chosen: Mapping[str, AttributeValue] | None = None, *, embeds: bool = False
) -> TextReader:
    """The reader of a pretrained folder of the BERT family.

    Args:
        folder: with ``config.json`` and ``tokenizer.json``, or with ``modules.json``, which says where they are; see
            :func:`routerjax.pretrained.locate`.
        chosen: attributes of the encoder other than those that its files say.
        embeds: read it as a sentence encoder, whose files say how it makes an embedding.

    Raises:
        InputError: damaged, of another architecture, or with layers after the pooling that have weights; or a choice
            that is none of dropout_rate, attention_dropout_rate, dtype, remat, scan_layers, of another type or out of
            range.
    """
    _require_choices(chosen or {})
    choices = _checked(chosen or {}, WHOSE_CHOICES)
    modules = read_sentence_modules(folder) if embeds else SentenceModules(transformer=transformer_folder(folder))
    folder = modules.transformer
    for layer in modules.layers:
        if layer.kind != "normalize":
            raise InputError(
                f"{layer.folder}: a {layer.kind} after the pooling is not trained with the encoder: set "
                "features.train_encoder=False"
            )
    files = read_tokenizer_files(folder)
    described = _checked(read_bert_encoder(folder), f"{folder / 'config.json'}: encoder")
    try:
        reader = TextReader(
            BertEncoder(**{**described, **choices}),
            bool(modules.layers),
            files,
            cast("tuple[Pooling, ...]", modules.pooling),
            modules.prefix,
            modules.lowercase,
        )
        reader.tokenizer(reader.encoder.max_length)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return reader


def pretrained_params(module: nn.Module, folder: Path, *, key: Array | None = None) -> PyTree:
    """Parameters of a router that reads text, with its encoder's from a folder.

    To be trained, with a key: the classifier, whose columns in the folder are other labels if there are any, is always
    initialised, and so is all else of the head that the folder does not hold or whose head is not the architecture's
    own; it is logged. Without a key, nothing is: the folder must hold all.

    Args:
        module: as :func:`routerjax.router.make_module` makes it for a reader.
        folder: as :func:`load_reader` takes it, with ``model.safetensors``, or shards and their index.
        key: initialises what is not taken from the folder; None to take all from there.

    Raises:
        InputError: tensors missing, extra or misshaped; all are listed.
    """
    folder = transformer_folder(folder)
    read: BertEncoder = module.encoder.encoder if isinstance(module, EmbedThen) else cast(BertRouter, module).encoder
    require_sizes(encoder_sizes(read), count_numbers(folder), folder / "config.json")
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
