"""Files of pretrained models, as others wrote them: text, JSON, and their hashes."""

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path
from typing import TypeVar

from routerjax.errors import InputError

JsonT = TypeVar("JsonT", bound=dict | list)

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse the few lines that Git LFS leaves in place of a large file that was not fetched.

    Raises:
        InputError: the file is such a pointer.
    """
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(
                f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository, or download it"
            )


def read_text_file(path: Path) -> bytes:
    """Read a text file of a pretrained model, without the byte order mark that some editors put before it.

    Raises:
        InputError: no such file, or a Git LFS pointer in its place.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}")
    refuse_lfs_pointer(path)
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def read_json(path: Path, kind: type[JsonT]) -> JsonT:
    """Read a JSON file.

    Args:
        path: of the file.
        kind: ``dict`` of an object, ``list`` of an array.

    Raises:
        InputError: no such file, not JSON, or not of this kind.
    """
    return parse_json(read_text_file(path), kind, path)


def parse_json(content: bytes, kind: type[JsonT], what: object) -> JsonT:
    """Parse the content of a JSON file; ``what`` is the file, as an error names it.

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
