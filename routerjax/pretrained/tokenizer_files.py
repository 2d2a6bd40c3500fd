"""Files of a pretrained tokenizer, and what they say of how texts are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from routerjax.config import Truncation
from routerjax.errors import InputError
from routerjax.pretrained.files import find_file, parse_json, read_text_file

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
NOT_A_TOKENIZER = f"{TOKENIZER_FILE} is not a tokenizer: it"
TOKENIZER_FILES = (
    *(TOKENIZER_FILE, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS),
    *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
)


def read_tokenizer_files(folder: Path, *, root: Path | None = None) -> dict[str, bytes]:
    """Read those of :data:`TOKENIZER_FILES` that a folder holds, and no others.

    Args:
        folder: that they lie in.
        root: that no link must leave; default ``folder``. See :func:`routerjax.pretrained.files.find_file`.

    Raises:
        InputError: there is no ``tokenizer.json``, or a file cannot be read.
    """
    root = folder if root is None else root
    present = [name for name in TOKENIZER_FILES if find_file(folder / name, folder=root) is not None]
    files = {name: read_text_file(folder / name, folder=root) for name in present}
    if TOKENIZER_FILE not in files:
        raise InputError(f"{folder} holds no {TOKENIZER_FILE}; save its tokenizer as a fast one")
    return files


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


def tokenizer_config(files: Mapping[str, bytes]) -> dict[str, object]:
    """Read ``tokenizer_config.json``; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    content = files.get(TOKENIZER_CONFIG)
    return {} if content is None else parse_json(content, dict, TOKENIZER_CONFIG)


def truncation_side(files: Mapping[str, bytes]) -> Truncation:
    """The side from which transformers cuts a longer text; what neither file says is ``right``.

    Raises:
        InputError: a file is damaged, or says another side.
    """
    side = tokenizer_config(files).get("truncation_side")
    if side is None:  # then transformers goes by the tokenizer itself
        truncation = parse_json(files[TOKENIZER_FILE], dict, NOT_A_TOKENIZER).get("truncation")
        side = truncation.get("direction") if isinstance(truncation, dict) else None
    lowered = "right" if side is None else str(side).lower()
    if lowered not in ("left", "right"):
        raise InputError(f"{TOKENIZER_CONFIG}: truncation_side must be 'left' or 'right', got {side!r}")
    return cast(Truncation, lowered)
