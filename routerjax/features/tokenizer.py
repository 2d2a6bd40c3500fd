"""Text to token ids, in batches of a few static shapes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args, overload

import jax
import numpy as np
import tokenizers
import tqdm
from jaxtyping import Bool, Int, Int32

from routerjax.config import Truncation
from routerjax.errors import InputError, choose
from routerjax.features.cutting import CHARACTERS_PER_TOKEN, cut
from routerjax.models import Encoder
from routerjax.pretrained import NO_TEMPLATE, ChatTemplate, parse_tokenizer
from routerjax.prompts import require_texts, valid_text

# Prompts are padded to one of these lengths, and batches to a power of two of rows: each pair is one compilation.
LENGTHS = (16, 32, 48, *(length for power in range(6, 17) for length in (2**power, 3 * 2 ** (power - 1))))
# Most tokens of a batch: small ones stay in a CPU's cache, large ones fill an accelerator.
TOKENS_ON_CPU, TOKENS_ON_ACCELERATOR = 2048, 32768
# Texts that the tokenizer's threads take at a time; each holds all of its tokens' texts until it is read.
TEXTS_PER_CALL = 1024
LARGEST_ID = 2**31 - 1
# A text that stands between the special tokens; a tokenizer may know only some of these.
PROBES = ("a", "0", "A", ".")

Tokens = Sequence[int] | Int32[np.ndarray, "length"]
"""Token ids of one text."""


class TokenRows(Sequence[Int32[np.ndarray, "length"]]):
    """Token ids of texts, one after another in one array: no Python object for each text.

    Args:
        parts: token ids of some texts each, in order.
    """

    def __init__(self, parts: Iterable[Sequence[Int32[np.ndarray, "length"]]]) -> None:
        flat, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        for part in parts:
            flat.append(np.concatenate(part))
            lengths.append(np.asarray([len(ids) for ids in part]))
        self._flat, self._ends = np.concatenate(flat), np.cumsum(np.concatenate(lengths))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> Int32[np.ndarray, "length"]: ...

    @overload
    def __getitem__(self, row: slice) -> list[Int32[np.ndarray, "length"]]: ...

    def __getitem__(self, row: int | slice) -> Int32[np.ndarray, "length"] | list[Int32[np.ndarray, "length"]]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self._flat[self._ends[row] : self._ends[row + 1]]


class TokenIds(NamedTuple):
    """Texts as their tokens.

    Attributes:
        token_ids: of each text, without padding, special ones included.
        is_cut: bool ``[texts]``, where tokens were left out.
    """

    token_ids: TokenRows
    is_cut: Bool[np.ndarray, "texts"]


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """The real tokenizer of a model; what its file says of truncation and padding is overridden.

    Of a text longer than 1,000 characters for each token that is kept, no more than these are read.

    Attributes:
        tokenizer_json: its file, byte for byte.
        max_length: tokens of a text that are kept, special ones included.
        padding_id: what fills a row up; the mask is 0 there.
        truncation: what is left out of a longer text: its beginning (``left``), its end (``right``), or its ``middle``.
        prefix: put before each text, and cut with it.
        template: what each text is put into, which is never cut; special tokens in it are read as such, and the
            tokenizer adds none of its own.

    Raises:
        InputError: not a tokenizer's file, more special tokens than ``max_length``, or a template that the tokenizer
            does not read apart from the text.
    """

    tokenizer_json: bytes
    max_length: int
    padding_id: int = 0
    truncation: Truncation = "right"
    prefix: str = ""
    template: ChatTemplate = NO_TEMPLATE

    def __post_init__(self) -> None:
        choose(self.truncation, dict.fromkeys(get_args(Truncation)), "truncation")
        _ = self.tokenizer  # not a tokenizer's file is said first
        before, after = self.special_tokens
        if len(before) + len(after) > self.max_length:
            whose = "tokens of the template" if self._has_template else "special tokens of a text"
            raise InputError(f"max_length must be at least the {len(before) + len(after)} {whose}")

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer itself, which neither pads nor cuts."""
        return parse_tokenizer(self.tokenizer_json)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Two tokenizers give the same tokens if this is the same."""
        sha256 = hashlib.sha256(self.tokenizer_json).hexdigest()
        described = f"{sha256} {self.max_length} {self.padding_id} {self.truncation} {self.prefix!r}"
        described += f" {self.template!r}" if self._has_template else ""
        return hashlib.sha256(described.encode()).hexdigest()

    def read(self, texts: Sequence[str], *, progress: bool = False) -> TokenIds:
        """Tokens of each text; the library uses all cores.

        Args:
            texts: to read.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: a row that is not text, or a text that the tokenizer fails on.
        """
        require_texts(texts)
        before, after = self.special_tokens
        is_cut = np.zeros(len(texts), bool)

        def parts() -> Iterator[list[Int32[np.ndarray, "length"]]]:
            with tqdm.tqdm(total=len(texts), unit="prompt", desc="tokenising", disable=not progress, delay=2) as bar:
                for start in range(0, len(texts), TEXTS_PER_CALL):
                    cuts = cut(
                        [self.prefix + self.template.trim(text) for text in texts[start : start + TEXTS_PER_CALL]],
                        self._encode,
                        count=self.max_length - len(before) - len(after),
                        characters=CHARACTERS_PER_TOKEN * self.max_length,
                        side=self.truncation,
                    )
                    is_cut[start : start + len(cuts)] = [part.is_cut for part in cuts]
                    yield [np.concatenate([before, part.token_ids, after]) for part in cuts]
                    bar.update(len(cuts))

        return TokenIds(TokenRows(parts()), is_cut)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without padding; see :meth:`read`."""
        return [ids.tolist() for ids in self.read(texts).token_ids]

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        try:
            encoded = self.tokenizer.encode_batch(
                [valid_text(text) for text in texts], add_special_tokens=add_special_tokens
            )
        except BaseException as error:
            # The library raises bare Exception, and what its Rust code panics with is none.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InputError(f"the tokenizer fails on a text: {error}") from error
        return [encoding.ids for encoding in encoded]

    @property
    def _has_template(self) -> bool:
        return self.template != NO_TEMPLATE

    @functools.cached_property
    def largest_id(self) -> int:
        """The largest token id, of the vocabulary, added and special tokens."""
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        return int(max(0, *vocabulary.values(), *(ids.max(initial=0) for ids in self.special_tokens)))

    @functools.cached_property
    def special_tokens(self) -> tuple[Int32[np.ndarray, "before"], Int32[np.ndarray, "after"]]:
        """Special tokens that stand before and after those of a text, or the template's."""
        rendered = []
        for probe in PROBES:
            whole = self._encode([self.template.render(probe)], add_special_tokens=not self._has_template)
            ((plain,), (ids,)) = self._encode([probe]), whole
            if max(ids, default=0) > LARGEST_ID:
                raise InputError(f"the tokenizer has the token id {max(ids)}, more than {LARGEST_ID}")
            rendered.append((plain, ids))
        places = [
            (ids[:start], ids[start + len(plain) :])
            for plain, ids in rendered
            for start in range(len(ids) - len(plain) + 1 if plain else 0)
            if ids[start : start + len(plain)] == plain
        ]

        def count(place: tuple[list[int], list[int]]) -> int:
            return sum(ids == [*place[0], *plain, *place[1]] for plain, ids in rendered)

        if places:
            # A template may hold one of these texts itself, but the others stand where the prompt does.
            before, after = max(places, key=count)
            if self._has_template and any(
                [*before, *plain, *after] != ids
                for probe, (plain, ids) in zip(PROBES, rendered, strict=True)
                if probe.isalpha()
            ):
                raise InputError(
                    "the tokenizer joins the prompt with the template around it: end the text before {prompt} with a "
                    f"line break or a special token, not with a space, got {self.template.prefix[-40:]!r}"
                )
            return np.asarray(before, np.int32), np.asarray(after, np.int32)
        around = "the template" if self._has_template else "special ones"
        raise InputError(f"the tokenizer does not read {', '.join(PROBES)} as tokens between {around}")

    def pad(
        self, token_ids: Sequence[Tokens], length: int | None = None, *, batch: int | None = None
    ) -> dict[str, Int32[np.ndarray, "batch length"]]:
        """``token_ids`` and ``attention_mask``; by default just as long and as many as there are."""
        if length is None:
            length = max(map(len, token_ids), default=0)
        shape = (len(token_ids) if batch is None else batch, length)
        query = {"token_ids": np.full(shape, self.padding_id, np.int32), "attention_mask": np.zeros(shape, np.int32)}
        for row, ids in enumerate(token_ids):
            query["token_ids"][row, : len(ids)] = ids
            query["attention_mask"][row, : len(ids)] = 1
        return query

    @property
    def lengths(self) -> tuple[int, ...]:
        """The static lengths of batches, the longest last."""
        return (*(length for length in LENGTHS if length < self.max_length), self.max_length)

    def bucket_of(self, token_ids: Sequence[Tokens]) -> Int[np.ndarray, "texts"]:
        """Place in :attr:`lengths` of the shortest length that holds each text."""
        return np.searchsorted(self.lengths, [len(ids) for ids in token_ids])

    def batches(
        self, token_ids: Sequence[Tokens]
    ) -> Iterator[tuple[Int[np.ndarray, "rows"], dict[str, Int32[np.ndarray, "batch length"]]]]:
        """Yield rows and their padded query, in a few static shapes: a length of :attr:`lengths`, rows a power of two.

        The last batch of a length has no more rows than the next power of two, so that one text costs one row. The
        longest come first, so that the time left is never underestimated.
        """
        bucket_of = self.bucket_of(token_ids)
        tokens = TOKENS_ON_CPU if jax.default_backend() == "cpu" else TOKENS_ON_ACCELERATOR
        for bucket in reversed(range(len(self.lengths))):
            rows = np.flatnonzero(bucket_of == bucket)
            largest = padded_rows(max(1, tokens // self.lengths[bucket]) + 1) // 2  # the power of two below or there
            for start in range(0, len(rows), largest):
                part = rows[start : start + largest]
                batch = padded_rows(len(part))
                yield part, self.pad([token_ids[row] for row in part], self.lengths[bucket], batch=batch)


def padded_rows(rows: int) -> int:
    """Return the smallest power of two that is not below ``rows``; 1 for none.

    Example:
        >>> [padded_rows(rows) for rows in (0, 1, 2, 3, 128, 129)]
        [1, 1, 2, 4, 128, 256]
    """
    return 1 << max(rows - 1, 0).bit_length()


def tokenizer_for(
    encoder: Encoder,
    tokenizer_json: bytes,
    max_length: int,
    truncation: Truncation = "right",
    *,
    prefix: str = "",
    template: ChatTemplate = NO_TEMPLATE,
) -> TextTokenizer:
    """The tokenizer of an encoder, which keeps at most ``max_length`` tokens of a text and what is put around it.

    Raises:
        InputError: a length that the encoder does not read, no such truncation, not a tokenizer's file, or not that of
            the encoder.
    """
    if not 2 <= max_length <= encoder.max_length:
        raise InputError(
            f"max_length must be in [2, {encoder.max_length}], what the encoder reads, got {max_length}: set "
            f"features.max_length={encoder.max_length}"
        )
    loaded = TextTokenizer(tokenizer_json, max_length, encoder.padding_id, truncation, prefix, template)
    if loaded.largest_id >= encoder.vocab_size:  # JAX would take the last row of the table for it
        raise InputError(
            f"the tokenizer has the token id {loaded.largest_id}, the encoder only {encoder.vocab_size} tokens"
        )
    return loaded
