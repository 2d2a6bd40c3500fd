"""Files of pretrained models: their hashes, and JSON that others wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

from routerjax.errors import InputError

JsonT = TypeVar("JsonT", bound=dict | list)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, kind: type[JsonT]) -> JsonT:
    """What a JSON file holds.

    Args:
        path: of the file.
        kind: ``dict`` of an object, ``list`` of an array.

    Raises:
        InputError: no such file, not JSON, or not of this kind.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} has no {path.name}") from error
    return parse_json(content, kind, path)


def parse_json(content: bytes, kind: type[JsonT], what: object) -> JsonT:
    """What the content of a JSON file holds; ``what`` is the file, as an error names it.

    Raises:
        InputError: not JSON, or not of this kind.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON: {error}") from error
    if not isinstance(parsed, kind):
        raise InputError(f"{what} must hold a JSON {'object' if kind is dict else 'array'}, got {str(parsed)[:40]}")
    return parsed
