"""Report of the prompts that a tokenizer cut, and of those that it cannot tell apart."""

from __future__ import annotations

import collections
import hashlib
import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from routerjax.features.tokens import TextTokenizer

logger = logging.getLogger(__name__)

LEFT_OUT = {"left": "the beginning", "right": "the end", "middle": "the middle"}
# Two hashes of 24 bits, which float32 holds exactly: one pair of a million prompts is alike by chance in 1e-3 cases.
HASH_BYTES = 3


class Reading(NamedTuple):
    """Summary of a prompt's tokens.

    Attributes:
        is_cut: if tokens were left out.
        tokens_hash: equal where the tokens are.
    """

    is_cut: bool
    tokens_hash: tuple[int, int]

    @classmethod
    def of(cls, token_ids: Int32[np.ndarray, "length"], is_cut: bool) -> Reading:
        """The reading of a prompt with these tokens."""
        digest = hashlib.sha256(np.asarray(token_ids, "<i4").tobytes()).digest()
        first, second = digest[:HASH_BYTES], digest[HASH_BYTES : 2 * HASH_BYTES]
        return cls(bool(is_cut), (int.from_bytes(first), int.from_bytes(second)))

    def to_row(self) -> Float32[np.ndarray, "3"]:
        """Return the reading as a row of an embedding cache."""
        return np.asarray([self.is_cut, *self.tokens_hash], np.float32)

    @classmethod
    def from_row(cls, row: Float32[np.ndarray, "3"]) -> Reading:
        """The inverse of :meth:`to_row`."""
        is_cut, first, second = row.tolist()
        return cls(is_cut != 0, (int(first), int(second)))


def read_prompts(tokenizer: TextTokenizer, prompts: Sequence[str]) -> list[Int32[np.ndarray, "length"]]:
    """Tokens of prompts; how many of the different ones were cut is logged."""
    token_ids, is_cut = tokenizer.read(prompts)
    readings = dict(zip(prompts, map(Reading.of, token_ids, is_cut), strict=True))
    report_cut(readings.values(), tokenizer)
    return token_ids


def report_cut(readings: Collection[Reading], tokenizer: TextTokenizer) -> None:
    """Log how many prompts were cut, and how many different ones became one and the same input.

    Args:
        readings: of different prompts, each once.
        tokenizer: what read them.
    """
    count = len(readings)
    cut = sum(reading.is_cut for reading in readings)
    hashes = collections.Counter(reading.tokens_hash for reading in readings)
    alike = [number for number in hashes.values() if number > 1]
    inputs = "one and the same input" if len(alike) == 1 else f"only {len(alike)} different inputs"
    merged = f"{sum(alike)} different prompts became {inputs}" if alike else ""
    if cut:
        left_out = f"{LEFT_OUT[tokenizer.truncation]} of {'it' if cut == 1 else 'them'} was not read"
        logger.warning(
            "%d of %d prompt%s %s cut at %d tokens: %s%s",
            *(cut, count, "" if count == 1 else "s", "was" if cut == 1 else "were"),
            *(tokenizer.max_length, left_out, f"; {merged}" * bool(merged)),
        )
    elif merged:
        logger.info("%s, which the tokenizer does not tell apart", merged)
