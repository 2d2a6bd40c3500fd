"""Tokenizers whose work has no bound, refused before they read a text."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
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


_GROUP = re.compile(r"\((?P<body>[^()]*)\)")
_REPETITION = re.compile(r"(?P<times>[*+?]|\{\d*,?\d*\})(?P<mode>[?+]?)")


def _unbounded_work(regex: str) -> str | None:
    """Say why the time of a failed match has no bound worth the name; None where it has.

    That is so where a part that matches in several ways is repeated, and where many repetitions follow one another.
    From the inside out, a group becomes ``V`` if it matches in several ways, else ``x``, and before it as many ``r`` as
    it has quarters of a repetition.
    """
    plain = re.sub(r"\\.", "x", regex, flags=re.DOTALL)  # of \p{L}, {L} is left, which is no repetition
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    plain = re.sub(r"\(\?(?:[a-zA-Z-]*:|<?[=!]|>|<\w+>)", "(", plain)
    plain = re.sub(r"[^()|*+?{},\d]", "x", plain)
    while True:
        group = _GROUP.search(plain)
        body = plain if group is None else group["body"]
        if re.search(r"V([*+]|\{\d*,?\d*\})", body):
            return "repeats what is repeated or has alternatives"
        quarters = max(map(_quarters, body.split("|")))
        if quarters >= 4 * MOST_REPETITIONS:
            return "has too many repetitions in a row"
        if group is None:
            return None
        times = [repetition["times"] for repetition in _REPETITION.finditer(body)]
        parts = _REPETITION.sub("", body).replace("r", "")
        repeats = any(one in "*+" or "," in one for one in times)
        varies = repeats or "|" in body or "V" in body or ("?" in times and len(parts) > 1)
        plain = plain[: group.start()] + "r" * (quarters + varies) + "xV"[varies] + plain[group.end() :]


def _quarters(branch: str) -> int:
    """Quarters of a repetition: an optional part is one, what gives nothing back or is of a fixed number is none."""
    repetitions = [one["times"] for one in _REPETITION.finditer(branch) if one["mode"] != "+"]
    return branch.count("r") + sum(1 if one == "?" else 4 * (not one[1:-1].isdecimal()) for one in repetitions)
