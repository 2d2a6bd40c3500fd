"""The first or the last tokens of a text, read from as little of it as decides them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32

from routerjax.config import Truncation

CHARACTERS_PER_TOKEN = 1000
"""So many characters of a text are read for each token that is kept, at most: megabytes of white space cost little."""
# Characters a token that are tokenised at first, and some more: most texts have about four.
WINDOW_PER_TOKEN, WINDOW_MARGIN = 6, 512
# Tokens that a part must have beyond those that are kept, which lie at its end and may be others in a longer one.
MARGIN = 16

SequenceT = TypeVar("SequenceT", str, Sequence[int])
Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Token ids of texts without special ones."""


class Cut(NamedTuple):
    """The tokens of a text that are kept, and if any are left out."""

    token_ids: Int32[np.ndarray, "tokens"]
    is_cut: bool


def cut(texts: Sequence[str], encode: Encode, *, count: int, characters: int, side: Truncation) -> list[Cut]:
    """Tokens of each text, at most ``count``.

    They are those of the whole text, but are read from a part of it, at the side that is kept: a part of twice the
    length must give the same tokens.

    Args:
        texts: any.
        encode: the tokenizer, without truncation.
        count: tokens to keep.
        characters: of a text that are read at most; what is longer counts as cut.
        side: what is left out of a longer text: its beginning (``left``), its end (``right``), or its ``middle``.
    """
    is_long = [len(text) > characters for text in texts]
    if side != "middle":
        from_end = side == "left"
        cuts = _ends([_end(text, characters, from_end) for text in texts], encode, count, from_end)
        return [Cut(ids, is_cut or long) for (ids, is_cut), long in zip(cuts, is_long, strict=True)]
    head_count, half = (count + 1) // 2, characters // 2
    heads = [text[:half] if long else text for text, long in zip(texts, is_long, strict=True)]
    cuts = _ends(heads, encode, count, False)
    rows = [row for row, (_, is_cut) in enumerate(cuts) if is_cut or is_long[row]]
    tails = [texts[row][-half:] if is_long[row] else texts[row] for row in rows]
    for row, (tail, _) in zip(rows, _ends(tails, encode, count - head_count, True), strict=True):
        cuts[row] = Cut(np.concatenate([cuts[row].token_ids[:head_count], tail]), True)
    return cuts


def _ends(texts: Sequence[str], encode: Encode, count: int, from_end: bool) -> list[Cut]:
    """The first tokens of each text, or the last."""
    cuts: dict[int, Cut] = {}
    unconfirmed: dict[int, Sequence[int]] = {}
    size = WINDOW_PER_TOKEN * count + WINDOW_MARGIN
    pending = list(range(len(texts)))
    while pending:
        encoded = encode([_end(texts[row], size, from_end) for row in pending])
        for row, ids in zip(pending, encoded, strict=True):
            kept = _end(ids, count, from_end)
            if len(texts[row]) <= size or (len(ids) > count and unconfirmed.get(row) == kept):
                cuts[row] = Cut(np.asarray(kept, np.int32), len(ids) > count)
            elif len(ids) > count + MARGIN:
                unconfirmed[row] = kept
        pending = [row for row in pending if row not in cuts]
        size *= 2
    return [cuts[row] for row in range(len(texts))]


def _end(values: SequenceT, size: int, from_end: bool) -> SequenceT:
    """The first ``size`` of a sequence, or the last."""
    return values[max(len(values) - size, 0) :] if from_end else values[:size]
