"""What a router must remember of its features, so that it is never scored with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from routerjax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """How embeddings were made.

    Attributes:
        kind: ``encoder`` made them from text; ``given`` were made elsewhere.
        source: the encoder's folder or Hugging Face name; or the file of the given embeddings.
        width: of an embedding.
        fingerprint: two features are the same if and only if this is: the encoder's weights, tokenizer, length and
            pooling; or what the maker of given embeddings declared.
        max_length: tokens of a prompt that the encoder reads; None for given embeddings.
    """

    kind: Literal["encoder", "given"]
    source: str
    width: int
    fingerprint: str
    max_length: int | None = None

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> FeatureSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: fields missing or unknown, or of another type.
        """
        kinds = {"kind": str, "source": str, "width": int, "fingerprint": str, "max_length": int | None}
        wrong = [name for name, kind in kinds.items() if name not in fields or not isinstance(fields[name], kind)]
        if wrong or set(fields) - set(kinds) or fields["kind"] not in ("encoder", "given"):
            raise InputError(f"a feature specification has {', '.join(kinds)}; got {dict(fields)}")
        return cls(**cast("dict[str, Any]", dict(fields)))
