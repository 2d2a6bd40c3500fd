"""Tokens as features: routers that read text themselves, whose encoder is trained and stored with them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import jax
import numpy as np
from jaxtyping import Int

from routerjax.config import AttributeValue, Count, Truncation
from routerjax.errors import InputError
from routerjax.features.cache import PROMPTS_PER_PART, EmbeddingCache
from routerjax.features.cut_report import CutReport, read_prompts
from routerjax.features.featurizer import Featurizer, HostQuery, TextFunction, register_featurizer
from routerjax.features.tokenizer import TextTokenizer, tokenizer_for
from routerjax.models import (
    POOLINGS,
    Encoder,
    Normalize,
    Pooling,
    SentenceEmbedding,
    describe_encoder,
    encoder_sizes,
    example_tokens,
    for_scoring,
    make_encoder,
    up_to_layer,
    with_choices,
)
from routerjax.pretrained import (
    LAYER_TENSORS,
    NO_TEMPLATE,
    RESOLVED_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    ChatTemplate,
    SentenceModules,
    locate,
    read_encoder,
    read_sentence_modules,
    read_tokenizer,
    require_sizes,
    resolved_tokenizer,
    tokenizer_config,
    transformer_folder,
)
from routerjax.validation import coerce, from_json


@register_featurizer
@dataclass(frozen=True, kw_only=True, eq=False)
class TokenFeaturizer(Featurizer):
    """Featurizer that gives tokens to a router with an encoder of its own, whose architecture it describes.

    Attributes:
        source: the folder or Hugging Face name of the encoder that training started from.
        max_length: tokens of a prompt that are read, special ones included.
        truncation: what is left out of a longer prompt, see :class:`TextTokenizer`.
        encoder: linen, from tokens to hidden states; its parameters are the router's.
        tokenizer_files: of the tokenizer, name -> content, byte for byte, and what transformers makes of them all if
            it is not their ``tokenizer.json``; see :func:`routerjax.pretrained.read_tokenizer`.
        normalize: scale the embedding, which routers of embeddings take, to unit length.
        pooling: how hidden states become that embedding; see :class:`routerjax.models.SentenceEmbedding`.
        prefix, template: put around each text; see :class:`TextTokenizer`.
        fingerprint: of the tokenizer, its length and its truncation.
        width: of the hidden states.

    Raises:
        InputError: no tokenizer among the files, a damaged configuration of it, one that is not the encoder's, or a
            length that the encoder does not read.
    """

    kind = "tokens"

    source: str
    max_length: int
    truncation: Truncation
    encoder: Encoder
    tokenizer_files: Mapping[str, bytes]
    normalize: bool = False
    pooling: tuple[Pooling, ...] = ("mean",)
    prefix: str = ""
    template: ChatTemplate = NO_TEMPLATE
    fingerprint: str = field(init=False, repr=False)
    width: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if TOKENIZER_FILE not in self.tokenizer_files:
            raise InputError(f"no {TOKENIZER_FILE}")
        unknown = sorted(set(self.tokenizer_files) - {*TOKENIZER_FILES, RESOLVED_FILE})
        if unknown:
            raise InputError(f"{unknown[0]!r} is no file of a tokenizer: {', '.join(TOKENIZER_FILES)}")
        _ = self.tokenizer_config  # damage is said now, not by an export after the training
        object.__setattr__(self, "fingerprint", self.tokenizer.fingerprint)
        object.__setattr__(self, "width", self.encoder.width)

    @property
    def description(self) -> str:
        """Tokens that are read, in a few words."""
        kept = {"right": "the first", "left": "the last", "middle": "the first and the last of"}[self.truncation]
        return f"text: {kept} {self.max_length} tokens of a prompt"

    @property
    def files(self) -> Mapping[str, bytes]:
        """Files of the tokenizer."""
        return self.tokenizer_files

    @property
    def embedding(self) -> SentenceEmbedding:
        """The embedding of a text that a router of embeddings takes, as a module with the encoder in it."""
        return SentenceEmbedding(self.encoder, self.pooling, (Normalize(),) if self.normalize else ())

    @functools.cached_property
    def tokenizer_config(self) -> Mapping[str, object]:
        """Content of ``tokenizer_config.json``; empty where there is none."""
        return tokenizer_config(self.tokenizer_files)

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """The real tokenizer, which keeps ``max_length`` tokens of a text."""
        tokenizer_json = resolved_tokenizer(self.tokenizer_files)
        return tokenizer_for(
            self.encoder, tokenizer_json, self.max_length, self.truncation, prefix=self.prefix, template=self.template
        )

    def query(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> HostQuery:
        """``token_ids`` and ``attention_mask`` int32 ``[prompts, length]``, as long as the longest prompt."""
        del cache
        return dict(self.tokenizer.pad(read_prompts(self.tokenizer, prompts, progress=progress)))

    def batches(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None
    ) -> Iterator[tuple[Int[np.ndarray, "rows"], HostQuery]]:
        """See :meth:`TextTokenizer.batches`, of some thousand prompts at a time."""
        del cache
        report = CutReport()
        for start in range(0, len(prompts), PROMPTS_PER_PART):
            with report.collecting():
                token_ids = read_prompts(self.tokenizer, prompts[start : start + PROMPTS_PER_PART])
            for rows, query in self.tokenizer.batches(token_ids):
                yield rows + start, dict(query)
        report.log()

    def text_function(self) -> TextFunction:
        """The tokenizer alone: the query is the tokens."""
        return TextFunction(self.tokenizer, {}, lambda _, tokens: tokens)

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the query of one prompt of two tokens."""
        return jax.eval_shape(example_tokens)

    def require_sizes(self, numbers: int, where: str) -> None:
        """Refuse an encoder of more numbers than a router holds; see :func:`routerjax.pretrained.require_sizes`."""
        require_sizes(encoder_sizes(self.encoder), numbers, where)

    def at(self, encoder: str) -> Featurizer:
        """Refuse another encoder."""
        raise InputError(
            f"this router reads text itself and takes no encoder but its own, got {encoder}: leave --encoder out"
        )

    def for_scoring(self) -> TokenFeaturizer:
        """Copy that computes in the type that the weights are stored in: another is a choice of training alone.

        Scores are thus the same wherever they are computed, and those of every format that a router is exported to.
        """
        return dataclasses.replace(self, encoder=for_scoring(self.encoder))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them, with the fingerprint, without the files."""
        fields = super().to_dict()
        del fields["tokenizer_files"]
        return {
            **fields,
            "pooling": list(self.pooling),
            "template": dataclasses.asdict(self.template),
            "encoder": describe_encoder(self.encoder),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: fields missing or unknown, of another type or out of range, no tokenizer among the files, or
                one of another fingerprint.
        """
        expected = {setting.name for setting in dataclasses.fields(cls)} - {"tokenizer_files", "width"}
        if set(fields) != expected:
            raise InputError(f"a featurizer of tokens has {', '.join(sorted(expected))}; got {sorted(fields)}")
        described = coerce(fields["encoder"], Mapping[str, object], "featurizer.encoder")
        pooling = coerce(fields["pooling"], tuple[Pooling, ...], "featurizer.pooling")
        if not pooling:
            raise InputError(f"featurizer.pooling must list one or more of {', '.join(POOLINGS)}, got none")
        kinds = {"source": str, "max_length": Count, "truncation": Truncation, "normalize": bool, "prefix": str}
        plain = {name: coerce(fields[name], kind, f"featurizer.{name}") for name, kind in kinds.items()}
        template = from_json(fields["template"], ChatTemplate, "featurizer.template")
        encoder = make_encoder(described, "featurizer.encoder")
        missing = set(describe_encoder(encoder)) - set(described)
        if missing:
            raise InputError(f"featurizer.encoder must say {', '.join(sorted(missing))}, too")
        featurizer = cls(encoder=encoder, pooling=pooling, template=template, tokenizer_files=files, **plain)
        if featurizer.fingerprint != fields["fingerprint"]:
            raise InputError(
                f"refused: its tokenizer has fingerprint {featurizer.fingerprint[:16]}, but this router was trained "
                f"with {featurizer.source}, fingerprint {str(fields['fingerprint'])[:16]}; its scores would mean "
                "nothing"
            )
        return featurizer


def load_tokens(
    source: str | os.PathLike[str],
    *,
    max_length: int | None = None,
    truncation: Truncation | None = None,
    chosen: Mapping[str, AttributeValue] | None = None,
    embeds: bool = False,
    pooling: Pooling | None = None,
    layer: int | None = None,
    template: ChatTemplate = NO_TEMPLATE,
) -> TokenFeaturizer:
    """Featurizer of a pretrained folder, whose encoder is to be trained with a router.

    Args:
        source: a folder with ``config.json`` and ``tokenizer.json``, or with ``modules.json``, which says where they
            are; or a Hugging Face name: see :func:`routerjax.pretrained.locate`.
        max_length: tokens of a prompt that are read; default what the tokenizer's configuration says, or all that the
            encoder can.
        truncation: what is left out of a longer prompt; default what the tokenizer's files say.
        chosen: attributes of the encoder other than those that its files say.
        embeds: read it as a sentence encoder, whose files say how it makes an embedding.
        pooling, layer: see :func:`routerjax.features.load_encoder`.
        template: what each prompt is put into, such as :func:`routerjax.pretrained.read_chat_template` reads.

    Raises:
        InputError: damaged, of another architecture, or with layers after the pooling that have weights; or a choice
            that the encoder has not, of another type or out of range.
    """
    folder = locate(source)
    if embeds:
        modules = read_sentence_modules(folder, chooses_pooling=pooling is not None)
    else:
        modules = SentenceModules(transformer=transformer_folder(folder))
    folder = modules.transformer
    for module in modules.layers:
        if module.kind in LAYER_TENSORS:
            raise InputError(
                f"{module.folder}: a {module.kind} after the pooling is not trained with the encoder: set "
                "features.train_encoder=False"
            )
    described = up_to_layer(read_encoder(folder), layer, "features.layer")
    encoder = with_choices(make_encoder(described, f"{folder / 'config.json'}: encoder"), chosen or {})
    tokenizer = read_tokenizer(folder, vocab_size=encoder.vocab_size, lowercase=modules.lowercase)
    try:
        most = encoder.max_length
        configured = configured_length(tokenizer_config(tokenizer.files), most, most=most)
        return TokenFeaturizer(
            source=os.fspath(source),
            max_length=configured if max_length is None else max_length,
            truncation=truncation or tokenizer.truncation,
            encoder=encoder,
            tokenizer_files=tokenizer.files,
            normalize=bool(modules.layers),
            pooling=cast("tuple[Pooling, ...]", modules.pooling if pooling is None else (pooling,)),
            prefix=modules.prefix,
            template=template,
        )
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def configured_length(config: Mapping[str, object], otherwise: int, *, most: int) -> int:
    """Tokens of a text that transformers would read, by a ``tokenizer_config.json``; ``most`` is what the encoder can.

    Args:
        config: content of the file.
        otherwise: the length where the file says none.
        most: tokens that the encoder can read.
    """
    limit = config.get("model_max_length")
    # Where nothing was said, transformers writes 1e30.
    return int(min(limit, most)) if isinstance(limit, int | float) and limit >= 2 else otherwise
