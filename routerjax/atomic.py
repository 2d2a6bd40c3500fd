"""Writing files and folders so that a reader sees all of them or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from routerjax.errors import InputError


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it into place.

    If the body raises, or the process dies, ``path`` keeps what it held before.

    Raises:
        InputError: the parent folder does not exist.
    """
    path = Path(path)
    require_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success rename it to ``path``.

    Raises:
        InputError: ``path`` exists already: nothing is ever overwritten.
    """
    path = Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for child in temporary.rglob("*"):
            if child.is_file():
                _flush(child)
        temporary.chmod(0o755)
        refuse_existing(path)
        os.rename(temporary, path)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _naming(path: Path, error: OSError) -> OSError:
    """The error with the file or folder it is about: what a full disk raises names none."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, os.fspath(path))


def require_folder(path: Path) -> None:
    """Raise InputError if the folder that ``path`` would lie in does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")


def refuse_existing(path: Path) -> None:
    """Refuse an output that exists, unless it is an empty folder, or that cannot be made where it is to be.

    Raises:
        InputError: it exists, or would lie in a file.
        PermissionError: it would lie in a folder that may not be written to.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file, not a folder")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"the output {path} exists already; choose another name or remove it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))
