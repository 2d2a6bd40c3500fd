"""The output folder of a run: locked while the run goes on, and cleared of what a killed one left half-written."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from routerjax.atomic import locked, refuse_existing
from routerjax.errors import InputError
from routerjax.router import require_router

logger = logging.getLogger(__name__)

# What routerjax.atomic writes under a temporary name; only a killed run leaves one of them behind.
TEMPORARY = (".run.json.*.tmp", ".router.*.tmp", ".knn.*.tmp", "training/.metrics.jsonl.*.tmp")


@contextlib.contextmanager
def run_folder(path: Path, *, resume: bool) -> Iterator[None]:
    """Hold a run's output folder, so that no other process writes into it meanwhile.

    The folder itself is locked; the operating system gives up the lock of a killed process. A folder that was made for
    the run and in which nothing was written is removed again.

    Args:
        path: the folder; made where there is none.
        resume: the folder holds a run already; otherwise it must be new or empty.

    Raises:
        InputError: another process trains into it; or it exists, and is no run to resume.
    """
    if not path.is_dir():
        refuse_existing(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            for left in [left for pattern in TEMPORARY for left in path.glob(pattern)]:
                logger.info("removing %s, which a killed run left half-written", left)
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            if not resume:
                refuse_existing(path)
            yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def require_loadable(path: Path) -> None:
    """Raise InputError if there is a router folder at ``path`` that cannot be loaded; an empty one is as none."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        require_router(path)
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and --resume writes it again") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with locked(descriptor, folder, "trains into it"):
            yield
    finally:
        os.close(descriptor)
