"""The output folder of a run: locked while the run goes on, and cleared of what a killed one left half-written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from routerjax.atomic import refuse_existing
from routerjax.errors import InputError
from routerjax.router import load_router

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# What routerjax.atomic writes under a temporary name; only a killed run leaves one of them behind.
TEMPORARY = (".config.json.*.tmp", ".router.*.tmp", ".knn.*.tmp", "training/.metrics.jsonl.*.tmp")


@contextlib.contextmanager
def run_folder(path: Path, *, resume: bool) -> Iterator[None]:
    """Hold a run's output folder, so that no other process writes into it meanwhile.

    The operating system gives up the lock of a killed process, whose file then stands in nobody's way. A folder that
    was made for the run and in which nothing was written is removed again.

    Args:
        path: the folder; made where there is none.
        resume: the folder holds a run already; otherwise it must be new or empty.

    Raises:
        InputError: another process trains into it; or it exists, and is no run to resume.
    """
    was_left = (path / LOCK_FILE).exists()
    if not (resume or was_left):
        refuse_existing(path)
    made = _make(path)
    try:
        with _locked(path):
            if was_left:
                _remove_temporary(path)
            if not resume and {child.name for child in path.iterdir()} != {LOCK_FILE}:
                raise InputError(f"the output {path} exists already; choose another name or remove it")
            yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def require_loadable(path: Path) -> None:
    """Raise InputError if there is a router folder at ``path`` that cannot be loaded; an empty one is as none."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        load_router(path)
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and --resume writes it again") from error


def _make(path: Path) -> list[Path]:
    """Make a folder; return those that were made, the innermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK_FILE
    descriptor = _open_locked(path)
    try:
        yield
    finally:
        # While it is still locked: another process must not find, and lock, a file that is about to go.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            os.close(descriptor)  # the run that held it ended, and removed it, in between
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                logger.warning("%s cannot be locked here: see that no other process trains into it", path.parent)
                return descriptor
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                message = f"{path.parent} is in use: another process trains into it; let it end, or choose another"
                raise InputError(message) from error
            raise


def _remove_temporary(folder: Path) -> None:
    for path in [left for pattern in TEMPORARY for left in folder.glob(pattern)]:
        logger.info("removing %s, which a killed run left half-written", path)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
