"""Featurizers: from text to the query of a router. Training, scoring and saving ask for nothing else."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, cast

import jax
import numpy as np
from jaxtyping import Float32, Int
from pydantic import ConfigDict

from routerjax.errors import InputError, RowError, choose
from routerjax.features.cache import PROMPTS_PER_PART, EmbeddingCache
from routerjax.features.cut_report import CutReport
from routerjax.features.tokenizer import TextTokenizer, padded_rows
from routerjax.registry import Registry
from routerjax.typing import Query, Variables
from routerjax.validation import from_json

# Embeddings scored at a time, a power of two: bounded space for families that compare with a memory.
LARGEST_BATCH = 1024
HASH_DIGITS = 16

HostQuery = dict[str, np.ndarray]
"""A query on the host, see :data:`routerjax.typing.Query`."""


class TextFunction(NamedTuple):
    """Tokens of a text, and the pure function from them to a query, for artefacts that read text without routerjax.

    Attributes:
        tokenizer: of the text.
        variables: of ``apply``.
        apply: ``(variables, tokens) -> query``; it jits.
    """

    tokenizer: TextTokenizer
    variables: Variables
    apply: Callable[[Variables, Query], Query]


class Featurizer(abc.ABC):
    """Featurizer: text to the query of a router, in a few static shapes.

    A subclass is a frozen dataclass whose fields are what a router keeps of it, as JSON: a text, a number, or a tuple
    or a mapping of these. It has a ``kind``, says ``fingerprint``, ``width`` and :meth:`query`, and overrides what else
    differs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: ClassVar[str]
    """Name under which it is registered."""
    takes_encoder: ClassVar[bool] = False
    """If its encoder may be looked for elsewhere, see :meth:`at`."""
    uses_cache: ClassVar[bool] = False
    """If it keeps embeddings in a cache: they cost enough for processes to share the work, see :func:`shared_query`."""

    fingerprint: str
    """Two featurizers make the same queries if and only if this is the same."""
    width: int
    """Width of the embedding, or of the hidden states that are made of tokens."""
    source: str
    """Name of what makes the queries, for messages."""

    @property
    def known_width(self) -> int | None:
        """The width, where it need not be asked for."""
        return self.width

    @property
    def description(self) -> str:
        """Text or embeddings that are read, in a few words."""
        return f"embeddings of {self.source}, {self.width} wide"

    @property
    def files(self) -> Mapping[str, bytes]:
        """Files that a router keeps for it, name -> content; most have none."""
        return {}

    @abc.abstractmethod
    def query(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> HostQuery:
        """Make the query of all prompts at once: ``embedding`` float32 ``[prompts, width]``.

        Args:
            prompts: texts.
            cache: where embeddings are kept between runs.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: a prompt that is not text, or what makes the query is not what it was.
        """

    def batches(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None
    ) -> Iterator[tuple[Int[np.ndarray, "rows"], HostQuery]]:
        """Yield rows of prompts and their query, padded to a few static shapes; see :meth:`query`.

        Prompts are read part by part, so that what is held does not grow with their number.
        """
        report = CutReport()
        for start in range(0, len(prompts), PROMPTS_PER_PART):
            with report.collecting():
                try:
                    query = self.query(prompts[start : start + PROMPTS_PER_PART], cache=cache)
                except RowError as error:
                    raise error.at(start + error.row) from error
            for rows, padded in embedding_batches(query["embedding"]):
                yield rows + start, padded
        report.log()

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the query of one prompt."""
        return {"embedding": jax.ShapeDtypeStruct((1, self.width), np.float32)}

    def text_function(self) -> TextFunction | None:
        """The way from text to the query as tokens and a pure function; None where it is no such thing."""
        return None

    def require_text(self) -> None:  # noqa: B027 (most need nothing)
        """Load what reads text, before any work depends on it.

        Raises:
            InputError: it reads no text, or what is found is not what made the queries.
        """

    def require_prompts(self, prompts: Sequence[str]) -> None:  # noqa: B027 (most read all)
        """Refuse texts that cannot be read, before any is.

        Raises:
            RowError: the first of them.
        """

    def require_sizes(self, numbers: int, where: str) -> None:  # noqa: B027 (most make nothing)
        """Refuse a description that does not fit a router of so many numbers, before anything is made of it."""

    def for_scoring(self) -> Self:
        """Copy without what is of training alone."""
        return self

    def at(self, encoder: str) -> Featurizer:
        """Look for the encoder elsewhere: a featurizer that is the same otherwise, and must have the same encoder.

        Raises:
            InputError: it has no encoder of its own that could lie elsewhere.
        """
        raise InputError(
            f"this router's features ({self.kind}) take no encoder but their own, got {encoder}: leave --encoder out"
        )

    def refusal(self, whose: str, fingerprint: str) -> InputError:
        """Error where something has another fingerprint; ``whose`` is its subject and verb."""
        # The first digits tell two hashes apart; another fingerprint, such as an endpoint's address, is shown whole.
        is_hash = len(self.fingerprint) == 64
        shown = slice(HASH_DIGITS if is_hash else None)
        return InputError(
            f"refused: {whose} fingerprint {fingerprint[shown]}, but this router was trained with {self.source}, "
            f"fingerprint {self.fingerprint[shown]}; its scores would mean nothing"
        )

    def require_same(self, fingerprint: str, width: int) -> None:
        """Raise InputError for embeddings that were made otherwise than those of the training."""
        if fingerprint != self.fingerprint:
            raise self.refusal("the embeddings have", fingerprint)
        if width != self.width:
            raise InputError(f"embeddings must be {self.width} wide, as in training, got {width}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them, without the files."""
        fields = [setting.name for setting in dataclasses.fields(cast(Any, self)) if setting.init]
        return {"kind": self.kind, **{name: getattr(self, name) for name in fields}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """The inverse of :meth:`to_dict`, without ``kind``.

        Raises:
            InputError: a field is missing, unknown, of another type or out of range.
        """
        del files
        return from_json(dict(fields), cls, "featurizer")


FEATURIZERS: Registry[type[Featurizer]] = Registry("routerjax.featurizers", key="kind")
"""Featurizers by kind; a package adds its own by an entry point ``routerjax.featurizers``."""

register_featurizer = FEATURIZERS.register
"""Make a featurizer known by its kind, see :meth:`routerjax.registry.Registry.register`."""


def read_featurizer(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Featurizer:
    """Read what :meth:`Featurizer.to_dict` wrote, with its files.

    Raises:
        InputError: no such kind (suggests the nearest), or as :meth:`Featurizer.from_dict`.
    """
    others = {name: value for name, value in fields.items() if name != "kind"}
    return choose(str(fields.get("kind", "")), FEATURIZERS, "featurizer.kind").from_dict(others, files)


def embedding_batches(
    embedding: Float32[np.ndarray, "prompts embed"],
) -> Iterator[tuple[Int[np.ndarray, "rows"], HostQuery]]:
    """Yield rows and their embeddings, padded with zeros to a power of two of rows."""
    for start in range(0, len(embedding), LARGEST_BATCH):
        part = embedding[start : start + LARGEST_BATCH]
        padding = np.zeros((padded_rows(len(part)) - len(part), part.shape[1]), part.dtype)
        yield np.arange(start, start + len(part)), {"embedding": np.concatenate([part, padding])}
