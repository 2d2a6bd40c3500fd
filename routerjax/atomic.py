"""Writing files and folders so that a reader sees all of them or nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from routerjax.errors import InputError

logger = logging.getLogger(__name__)

# What file systems say that have no locks, or none of folders.
CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new, empty file beside ``path``; on success flush it and rename it into place.

    It is made exclusively, so never through a link that somebody else left, under a name that no other thread or
    process uses, and with the permissions that the umask leaves. If the body raises, or the process dies, ``path``
    keeps what it held before.

    Raises:
        InputError: the parent folder does not exist.
    """
    path = Path(path)
    require_folder(path)
    temporary = _unused_name(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success rename it to ``path``, permissions as the umask has them.

    Raises:
        InputError: ``path`` exists already: nothing is ever overwritten.
    """
    path = Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unused_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for child in temporary.rglob("*"):
            if child.is_file() or child.is_dir():
                _flush(child)
        _flush(temporary)
        refuse_existing(path)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_log(path: Path, access: int) -> int:
    """Open a file that lines are appended to, which is made if it is missing, and return its descriptor.

    Args:
        path: of the file; of a pipe, if another process reads it.
        access: ``os.O_WRONLY``, or ``os.O_RDWR`` of a file that is read again, which is no pipe and no device.

    Raises:
        InputError: no such folder, a folder, a pipe that nobody reads, or no regular file where it is to be one.
        OSError: it may not be written.
    """
    require_folder(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    try:  # a pipe that nobody reads would be waited for
        descriptor = os.open(path, access | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise InputError(f"cannot write {path}: it is a pipe that no process reads, or a socket") from error
    if access == os.O_RDWR and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} must be a regular file, which is read again after a restart: choose another")
    os.set_blocking(descriptor, True)
    return descriptor


@contextlib.contextmanager
def locked(descriptor: int, path: Path, use: str) -> Iterator[None]:
    """Hold the lock of an open file or folder; the operating system gives up that of a killed process.

    Args:
        descriptor: of the file or folder.
        path: its name, for messages.
        use: what another process does that holds the lock, such as "trains into it".

    Raises:
        InputError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            message = f"{path} is in use: another process {use}; let it end, or choose another"
            raise InputError(message) from error
        if error.errno not in CANNOT_LOCK:
            raise
        logger.warning("%s cannot be locked here: see that no other process %s", path, use)
    yield


def _unused_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _naming(path: Path, error: OSError) -> OSError:
    """The error with the file or folder it is about: what a full disk raises names none."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, os.fspath(path))


def require_folder(path: Path) -> None:
    """Raise InputError if the folder that ``path`` would lie in does not exist, or ``path`` has a NUL in its name."""
    _refuse_nul(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")


def refuse_existing(path: Path) -> None:
    """Refuse an output that exists, unless it is an empty folder, or that cannot be made where it is to be.

    Raises:
        InputError: it exists, or would lie in a file, or has a NUL in its name.
        PermissionError: it would lie in a folder that may not be written to.
    """
    _refuse_nul(path)
    absolute = path.absolute()
    folder = next((parent for parent in absolute.parents if parent.exists()), absolute)  # the root has no parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file, not a folder")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"the output {path} exists already; choose another name or remove it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))


def _refuse_nul(path: Path) -> None:
    if "\0" in os.fspath(path):
        raise InputError(f"cannot write {os.fspath(path)!r}: a name cannot hold a NUL")
