"""Tokenizers whose work has no bound, refused before they read a text."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from routerjax.errors import InputError

MOST_GROWTH = 1000
"""A text may become so many times longer by normalisation, at most."""
LONGEST_WORD = 1000
"""Most characters of a word that WordPiece looks for in its vocabulary, and of a token of Unigram."""
MOST_REPETITIONS = 3
"""A part of a regular expression has fewer repetitions in a row, an optional one counting a quarter.

Where a match fails, the ways to share a text among them are tried one by one: its length to the power of their number.
"""


def require_bounded(tokenizer: Mapping[str, Any]) -> None:
    """Refuse a tokenizer for which a short text may be endless work, or which must fail on one.

    Args:
        tokenizer: what ``tokenizer.json`` holds.

    Raises:
        InputError: a normalizer that multiplies text, a regular expression whose repetitions are nested or many in a
            row, words or tokens without a bound, tokens drawn at random, or an unknown token that is none of the
            vocabulary's.
    """
    normalizers, pre_tokenizers = (tokenizer_steps(tokenizer, part) for part in ("normalizer", "pre_tokenizer"))
    if math.prod(map(_growth, normalizers)) > MOST_GROWTH:
        raise InputError(f"tokenizer.json: its normalizer makes a text more than {MOST_GROWTH} times longer")
    for step in (*normalizers, *pre_tokenizers):
        pattern = step.get("pattern")
        regex = str(pattern.get("Regex", "")) if isinstance(pattern, dict) else ""
        problem = _unbounded_work(regex)
        if problem:
            raise InputError(f"tokenizer.json: the regular expression {regex[:60]!r} {problem}, which may take forever")
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


def tokenizer_steps(tokenizer: Mapping[str, Any], part: Literal["normalizer", "pre_tokenizer"]) -> list[dict[str, Any]]:
    """List the steps of a part of ``tokenizer.json``: of a sequence those in it, even if no ``type`` calls it one."""
    several = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[part]

    def steps(component: object) -> list[dict[str, Any]]:
        if not isinstance(component, dict):
            return []
        if component.get("type", "Sequence") != "Sequence" or several not in component:
            return [component]
        return [step for inner in component[several] or () for step in steps(inner)]

    return steps(tokenizer.get(part))


def _growth(normalizer: Mapping[str, Any]) -> int:
    """Bound on how many times longer a text may become, rounded up; Unicode's own forms, a few times, are left out.

    A step is known by what it has: the library also reads steps that have no ``type``.
    """
    if "content" in normalizer:  # Replace
        pattern, content = normalizer.get("pattern"), str(normalizer["content"])
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1, -(-len(content) // len(replaced)) if isinstance(replaced, str) and replaced else 1 + len(content))
    if "prepend" in normalizer:
        return 1 + len(str(normalizer["prepend"])) // LONGEST_WORD * MOST_GROWTH
    if "precompiled_charsmap" in normalizer:
        try:
            content = base64.b64decode(str(normalizer["precompiled_charsmap"]), validate=True)
        except ValueError:
            return 1  # the library says so
        # A table of numbers, then the replacements, each with a zero byte behind it.
        replacements = content[4 + int.from_bytes(content[:4], "little") :]
        return max(1, max(map(len, replacements.split(b"\0")), default=1) // 8)
    return 1


_REGEX_PART = re.compile(
    r"(?P<open>\((?:\?(?:[a-zA-Z-]*:|<?[=!]|>|<\w+>))?)|(?P<close>\))|(?P<either>\|)"
    r"|(?P<repeat>[*+?]|\{\d*,?\d*\})(?P<mode>[?+]?)|(?P<one>.)",
    re.DOTALL,
)


@dataclass
class _Group:
    """Open group of a regular expression: what matches in several ways, and the repetitions of its branches."""

    varies: bool = False
    has_optional: bool = False
    parts: int = 0
    repetitions: float = 0.0
    of_longest_branch: float = 0.0


def _unbounded_work(regex: str) -> str | None:
    """Say why the time of a failed match has no bound worth the name; None where it has.

    That is so where a part that matches in several ways is repeated, and where many repetitions follow one another.
    """
    plain = re.sub(r"\\.", "x", regex, flags=re.DOTALL)  # of \p{L}, {L} is left, which is no repetition
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    groups = [_Group()]
    last_varies = False
    for part in _REGEX_PART.finditer(plain):
        group = groups[-1]
        if part["open"]:
            groups.append(_Group())
            continue
        if part["repeat"]:
            is_optional = part["repeat"] == "?"
            if last_varies and not is_optional:
                return "repeats what is repeated or has alternatives"
            if is_optional:
                group.has_optional = True
            elif "," in part["repeat"] or part["repeat"] in "*+":
                group.varies = True
            if part["mode"] != "+" and not part["repeat"].rstrip("}").lstrip("{").isdecimal():
                group.repetitions += 0.25 if is_optional else 1.0
            last_varies = False
        elif part["either"]:
            group.varies = True
            group.of_longest_branch, group.repetitions = max(group.of_longest_branch, group.repetitions), 0.0
        elif part["close"] and len(groups) > 1:
            inner = groups.pop()
            last_varies = inner.varies or (inner.has_optional and inner.parts > 1)
            groups[-1].varies |= last_varies
            groups[-1].parts += 1
            groups[-1].repetitions += max(inner.of_longest_branch, inner.repetitions) + 0.25 * last_varies
        else:
            group.parts += 1
            last_varies = False
        if groups[-1].repetitions >= MOST_REPETITIONS:
            return "has too many repetitions in a row"
    return None
