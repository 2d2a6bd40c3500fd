"""Tokenizers whose work has no bound, refused before they read a text."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

from routerjax.errors import InputError

MOST_GROWTH = 1000
"""A text may become so many times longer by normalisation, at most."""
LONGEST_WORD = 1000
"""Most characters of a word that WordPiece looks for in its vocabulary, and of a token of Unigram."""


def require_bounded(tokenizer: Mapping[str, Any]) -> None:
    """Refuse a tokenizer for which a short text may be endless work, or which must fail on one.

    Args:
        tokenizer: what ``tokenizer.json`` holds.

    Raises:
        InputError: a normalizer that multiplies text, a regular expression of nested repetitions, words or tokens
            without a bound, tokens drawn at random, or an unknown token that is none of the vocabulary's.
    """
    growth = 1
    for component in _components(tokenizer.get("normalizer")):
        growth *= _growth(component)
        if growth > MOST_GROWTH:
            raise InputError(f"tokenizer.json: its normalizer makes a text more than {MOST_GROWTH} times longer")
    for part in ("normalizer", "pre_tokenizer"):
        for component in _components(tokenizer.get(part)):
            pattern = component.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(regex, str) and _repeats_repetitions(regex):
                raise InputError(
                    f"tokenizer.json: the regular expression {regex[:60]!r} repeats what is repeated, which may take "
                    "forever"
                )
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        return
    if model.get("dropout"):
        raise InputError(f"tokenizer.json: dropout must be null, got {model['dropout']!r}: tokens would be random")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > LONGEST_WORD:
        raise InputError(f"tokenizer.json: max_input_chars_per_word must be at most {LONGEST_WORD}, got {longest}")
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    if model.get("type") in ("WordPiece", "WordLevel") and isinstance(vocabulary, dict) and unknown not in vocabulary:
        raise InputError(f"tokenizer.json: the unknown token {unknown!r} is not in its vocabulary")
    if isinstance(vocabulary, list):
        for entry in vocabulary:
            if isinstance(entry, list) and entry and len(str(entry[0])) > LONGEST_WORD:
                raise InputError(f"tokenizer.json: a token must be at most {LONGEST_WORD} characters long")


def _components(component: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(component, dict):
        yield component
        for several in ("normalizers", "pretokenizers"):
            for part in component.get(several) or ():
                yield from _components(part)


def _growth(normalizer: Mapping[str, Any]) -> int:
    """Bound on how many times longer a text may become, rounded up; Unicode's own forms, a few times, are left out."""
    kind = normalizer.get("type")
    if kind == "Replace":
        pattern, content = normalizer.get("pattern"), str(normalizer.get("content"))
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1, -(-len(content) // len(replaced)) if isinstance(replaced, str) and replaced else 1 + len(content))
    if kind == "Prepend":
        return 1 + len(str(normalizer.get("prepend"))) // LONGEST_WORD * MOST_GROWTH
    if kind == "Precompiled":
        try:
            content = base64.b64decode(str(normalizer.get("precompiled_charsmap")), validate=True)
        except ValueError:
            return 1  # the library says so
        # A table of numbers, then the replacements, each with a zero byte behind it.
        replacements = content[4 + int.from_bytes(content[:4], "little") :]
        return max(1, max(map(len, replacements.split(b"\0")), default=1) // 8)
    return 1


def _repeats_repetitions(regex: str) -> bool:
    """Return True if a group that holds an unbounded repetition is itself repeated without bound."""
    plain = re.sub(r"\\.", "x", regex, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    holds = [False]
    last = False  # if what a repetition would apply to holds one
    place = 0
    while place < len(plain):
        repetition = re.compile(r"[*+]|\{\d*,\}").match(plain, place)
        if repetition:
            if last:
                return True
            holds[-1] = True
            place = repetition.end()
            # A second sign makes it lazy or possessive.
            if plain[place : place + 1] in ("?", "+"):
                place += 1
            continue
        character = plain[place]
        if character == "(":
            holds.append(False)
        elif character == ")" and len(holds) > 1:
            last = holds.pop()
            holds[-1] = holds[-1] or last
            place += 1
            continue
        last = False
        place += 1
    return False
