"""Routers that read text themselves: the encoder is a part of the router, trained and stored with it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from routerjax.config import AttributeValue, Truncation
from routerjax.errors import InputError
from routerjax.features import FeatureSpec, TextTokenizer, tokenizer_for
from routerjax.models import (
    DTYPES,
    POOLINGS,
    BertEncoder,
    Normalize,
    Pooling,
    SentenceEmbedding,
    encoder_attributes,
    encoder_choices,
    encoder_types,
)
from routerjax.pretrained import (
    TOKENIZER_FILE,
    SentenceModules,
    configured_tokenizer,
    lowercased,
    read_bert_encoder,
    read_sentence_modules,
    read_tokenizer_files,
    tokenizer_config,
    transformer_folder,
    truncation_side,
)
from routerjax.validation import coerce


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
        fields = {name: getattr(self.encoder, name) for name in encoder_types()}
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
        described, types = fields["encoder"], encoder_types()
        if not isinstance(described, Mapping) or set(described) != set(types):
            raise InputError(f"reader.encoder has {', '.join(types)}; got {described!r}")
        encoder = BertEncoder(**encoder_attributes(described, "reader.encoder"))
        pooling = coerce(fields["pooling"], tuple[Pooling, ...], "reader.pooling")
        if not pooling:
            raise InputError(f"reader.pooling must list one or more of {', '.join(POOLINGS)}, got none")
        return cls(
            encoder,
            coerce(fields["normalize"], bool, "reader.normalize"),
            files,
            pooling,
            coerce(fields["prefix"], str, "reader.prefix"),
            coerce(fields["lowercase"], bool, "reader.lowercase"),
        )


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
    choices = encoder_choices(chosen or {})
    modules = read_sentence_modules(folder) if embeds else SentenceModules(transformer=transformer_folder(folder))
    folder = modules.transformer
    for layer in modules.layers:
        if layer.kind != "normalize":
            raise InputError(
                f"{layer.folder}: a {layer.kind} after the pooling is not trained with the encoder: set "
                "features.train_encoder=False"
            )
    files = read_tokenizer_files(folder)
    described = encoder_attributes(read_bert_encoder(folder), f"{folder / 'config.json'}: encoder")
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
