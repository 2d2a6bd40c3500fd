"""What a router must remember of its features, so that it is never scored with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from routerjax.config import Count, Truncation
from routerjax.validation import from_json

Kind = Literal["encoder", "endpoint", "given", "tokens"]


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What a router looks at, and how it was made.

    Attributes:
        kind: embeddings, which an ``encoder`` made from text here, an ``endpoint`` from text elsewhere, or which were
            ``given`` without anything that reads text; or ``tokens``, which the router's own encoder reads.
        source: the encoder's folder or Hugging Face name (of tokens: that the router's own one started from);
            ``openai:`` and the endpoint's model; or the file of the given embeddings.
        width: of an embedding, or of the hidden states that are made of tokens.
        fingerprint: two features are the same if and only if this is: the encoder's weights, tokenizer, length and
            pooling; the endpoint's model and address; what the maker of given embeddings declared; of tokens, the
            tokenizer and the length.
        max_length: tokens of a prompt that are read; None where no tokenizer is known.
        truncation: what is left out of a longer prompt: its beginning (``left``), its end (``right``), or its
            ``middle``; None where ``max_length`` is.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Kind
    source: str
    width: Count
    fingerprint: str
    max_length: Count | None = None
    truncation: Truncation | None = None

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> FeatureSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a field is missing, unknown, of another type or out of range.
        """
        return from_json(dict(fields), cls, "features")
