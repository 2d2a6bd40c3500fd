"""Files of pretrained models, as others wrote them: text, JSON, and their hashes."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import TypeVar

from routerjax.errors import InputError

JsonT = TypeVar("JsonT", bound=dict | list)

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SETTLED_NS = 1_000_000_000

MAX_TEXT_BYTES = 64 * 2**20
"""Most bytes of a text file that are read: of a configuration, or a tokenizer."""


def find_file(path: Path, *, folder: Path | None = None) -> Path | None:
    """A regular file in a folder that others may have made, or None where there is none of that name.

    Whoever made the folder may have put links into it, to files of the user's that it must not bring out. A link counts
    where it ends in the folder; or, in a snapshot of the Hugging Face cache, among the files of the same repository.

    Args:
        path: of the file.
        folder: that the file must not leave; default the one it lies in.

    Raises:
        InputError: a link that leads out of the folder, or anything but a regular file, such as a device or a pipe.
    """
    folder = path.parent if folder is None else folder
    name = path.relative_to(folder) if path.is_relative_to(folder) else None
    if name is None or ".." in name.parts or "\0" in str(name):
        raise InputError(f"{str(path)!r} is not in {folder}: refused")
    try:
        if not os.path.lexists(path):
            return None
        real, root = path.resolve(strict=True), folder.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # a link to nothing or to itself, a name that is too long
        raise InputError(f"{path} cannot be read: {error}") from error
    if not real.is_relative_to(root) and real.parent not in _blobs(root):
        raise InputError(f"{path} is a link to {real}, outside of {folder}: refused; put a copy of the file there")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file")
    return path


def _blobs(folder: Path) -> list[Path]:
    """Folder of a Hugging Face cache snapshot's files: ``models--OWNER--NAME/blobs``."""
    return [
        place.parents[1] / "blobs"
        for place in (folder, *folder.parents)
        if len(place.parents) > 1 and place.parent.name == "snapshots" and place.parents[1].name.startswith("models--")
    ]


def read_bytes(path: Path, *, folder: Path | None = None, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Content of a file in a folder that others may have made; see :func:`find_file`.

    Raises:
        InputError: no such file, a link that leads out of the folder, not a regular file, larger than ``max_bytes``,
            or a Git LFS pointer in its place.
    """
    if find_file(path, folder=folder) is None:
        raise InputError(f"{path.parent} has no {path.name}")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place must not make this wait
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path} is not a regular file")
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{path} is larger than {max_bytes} bytes, the most that is read of such a file")
    _refuse_lfs_pointer(content, path)
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; of one that did not change since this process last read it, without a look.

    A run asks for that of an encoder's weights several times: to find it, to describe the run, for its fingerprint.
    """
    status = path.stat()
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    # Within a tick of the file system's clock, a file may change again without a trace.
    if time.time_ns() - changed < SETTLED_NS:
        return _sha256(path)
    return _known_sha256(path.resolve(), status.st_dev, status.st_ino, status.st_size, changed)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.lru_cache(maxsize=256)
def _known_sha256(path: Path, *identity: int) -> str:
    del identity
    return _sha256(path)


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse the few lines that Git LFS leaves in place of a large file that was not fetched.

    Raises:
        InputError: the file is such a pointer.
    """
    with path.open("rb") as stream:
        _refuse_lfs_pointer(stream.read(len(LFS_POINTER)), path)


def _refuse_lfs_pointer(content: bytes, path: Path) -> None:
    if content.startswith(LFS_POINTER):
        raise InputError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its repository, or download it"
        )


def read_text_file(path: Path, *, folder: Path | None = None) -> bytes:
    """Read a text file of a pretrained model, without the byte order mark that some editors put before it.

    Raises:
        InputError: as :func:`read_bytes`.
    """
    return read_bytes(path, folder=folder).removeprefix(codecs.BOM_UTF8)


def read_json(path: Path, kind: type[JsonT], *, folder: Path | None = None) -> JsonT:
    """Read a JSON file.

    Args:
        path: of the file.
        kind: ``dict`` of an object, ``list`` of an array.
        folder: that the file must not leave; see :func:`find_file`.

    Raises:
        InputError: as :func:`read_bytes`, not JSON, or not of this kind.
    """
    return parse_json(read_text_file(path, folder=folder), kind, path)


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
