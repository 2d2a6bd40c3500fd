"""The first or the last tokens of a text, read from as little of it as decides them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from routerjax.config import Truncation
from routerjax.pretrained import tokenizer_steps

CHARACTERS_PER_TOKEN = 1000
"""So many characters of a text are read for each token that is kept, at most: megabytes of white space cost little."""
# Characters a token that are tokenised at first, and some more: most texts have about four.
WINDOW_PER_TOKEN, WINDOW_MARGIN = 12, 512
# Tokens beyond those that are kept, where a longer window must confirm them.
MARGIN = 16

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Token ids of texts without special ones."""


class Cut(NamedTuple):
    """The tokens of a text that are kept, and if any are left out."""

    token_ids: Int32[np.ndarray, "tokens"]
    is_cut: bool


def cut(
    texts: Sequence[str], encode: Encode, *, count: int, characters: int, side: Truncation, splits_at_spaces: bool
) -> list[Cut]:
    """Tokens of each text, at most ``count``.

    They are those of the whole text, but are read from a part of it, at the side that is kept. The part ends between a
    word and a space; where the tokenizer is not known to split there, or there is no such place, a part of twice the
    length must give the same tokens.

    Args:
        texts: any.
        encode: the tokenizer, without truncation.
        count: tokens to keep.
        characters: of a text that are read at most; what is longer counts as cut.
        side: what is left out of a longer text: its beginning (``left``), its end (``right``), or its ``middle``.
        splits_at_spaces: see :func:`splits_at_spaces`.
    """
    is_long = [len(text) > characters for text in texts]
    if side != "middle":
        from_end = side == "left"
        limited = [text[-characters:] if from_end else text[:characters] for text in texts]
        cuts = _ends(limited, encode, count, from_end, splits_at_spaces)
        return [Cut(ids, is_cut or long) for (ids, is_cut), long in zip(cuts, is_long, strict=True)]
    head_count, half = (count + 1) // 2, characters // 2
    heads = [text[:half] if long else text for text, long in zip(texts, is_long, strict=True)]
    cuts = _ends(heads, encode, count, False, splits_at_spaces)
    rows = [row for row, (_, is_cut) in enumerate(cuts) if is_cut or is_long[row]]
    tails = [texts[row][-half:] if is_long[row] else texts[row] for row in rows]
    ends = _ends(tails, encode, count - head_count, True, splits_at_spaces)
    for row, (end, _) in zip(rows, ends, strict=True):
        cuts[row] = Cut(np.concatenate([cuts[row].token_ids[:head_count], end]), True)
    return cuts


def _ends(texts: Sequence[str], encode: Encode, count: int, from_end: bool, splits_at_spaces: bool) -> list[Cut]:
    """The first tokens of each text, or the last."""
    cuts: dict[int, Cut] = {}
    unconfirmed: dict[int, list[int]] = {}
    size = WINDOW_PER_TOKEN * count + WINDOW_MARGIN
    pending = list(range(len(texts)))
    while pending:
        windows = [_window(texts[row], size, from_end) for row in pending]
        encoded = encode([window.text for window in windows])
        for row, window, ids in zip(pending, windows, encoded, strict=True):
            kept = list(ids[max(len(ids) - count, 0) :] if from_end else ids[:count])
            is_sure = (window.ends_a_word and splits_at_spaces) or unconfirmed.get(row) == kept
            if window.is_whole or (is_sure and len(ids) > count):
                cuts[row] = Cut(np.asarray(kept, np.int32), len(ids) > count)
            elif len(ids) > count + MARGIN:
                unconfirmed[row] = kept
        pending = [row for row in pending if row not in cuts]
        size *= 2
    return [cuts[row] for row in range(len(texts))]


class _Window(NamedTuple):
    text: str
    is_whole: bool
    ends_a_word: bool


def _window(text: str, size: int, from_end: bool) -> _Window:
    """The beginning or the end of a text, at most ``size`` characters and at least half as many."""
    if len(text) <= size:
        return _Window(text, True, True)
    part = text[-size:] if from_end else text[:size]
    half = size // 2
    place = part.find(" ", 1, half) if from_end else part.rfind(" ", half)
    while place > 0:
        if _ends_a_word(part[place - 1]):
            return _Window(part[place:] if from_end else part[:place], False, True)
        place = part.find(" ", place + 1, half) if from_end else part.rfind(" ", half, place)
    return _Window(part, False, False)


def _ends_a_word(character: str) -> bool:
    """Return True for a letter or digit that no normalisation joins with a space that follows (as it might U+0D4E)."""
    return character.isalnum() and character < "\U00010000" and character != "\u0d4e"


_LOCAL_NORMALIZERS = {
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"),
}
_LOCAL_PRE_TOKENIZERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace", "ByteLevel"}
_OTHER_LOCAL_PRE_TOKENIZERS = {"Punctuation", "Digits"}
_SEVERAL_SPACES = {"Regex": " {2,}"}


def splits_at_spaces(tokenizer: Mapping[str, Any]) -> bool:
    """Return True if a text's tokens are known to be those of the parts before and after a space that follows a letter.

    So it is where normalisation looks at a character and its neighbours of the same word alone, and words are then
    separated: of BERT's, RoBERTa's, XLM-RoBERTa's and like tokenizers.

    Args:
        tokenizer: what ``tokenizer.json`` holds.
    """
    normalizers, pre_tokenizers = (tokenizer_steps(tokenizer, part) for part in ("normalizer", "pre_tokenizer"))
    is_local = all(
        step.get("type") in _LOCAL_NORMALIZERS
        or (step.get("type") == "Replace" and step.get("pattern") == _SEVERAL_SPACES and step.get("content") == " ")
        for step in normalizers
    )
    separates = [
        step.get("type") in _LOCAL_PRE_TOKENIZERS
        and step.get("use_regex", True) is not False
        and step.get("split", True) is not False
        for step in pre_tokenizers
    ]
    is_known = all(
        known or step.get("type") in _OTHER_LOCAL_PRE_TOKENIZERS
        for known, step in zip(separates, pre_tokenizers, strict=True)
    )
    added = [token for token in tokenizer.get("added_tokens") or () if isinstance(token, dict)]
    # A token that holds a space, or swallows those behind it, may lie on both sides.
    crosses = any(
        any(map(str.isspace, str(token.get("content"))))
        or (token.get("rstrip") and _ends_a_word(str(token.get("content"))[-1:] or " "))
        for token in added
    )
    return is_local and is_known and any(separates) and not crosses
