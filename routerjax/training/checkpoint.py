"""Checkpoints of the training state; all that routerjax asks of Orbax is here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from routerjax.errors import InputError
from routerjax.typing import PyTree


class Checkpoints:
    """Numbered checkpoints of a tree of arrays with a small JSON note; the newest two are kept.

    Orbax writes each into a temporary folder and renames it when it is complete, so that a killed writer leaves the
    checkpoint before it as the newest. Each carries a SHA-256 of all that it holds: one bit that changed on the disk is
    noticed when it is read, whichever file it is in.

    Args:
        directory: where they are; made when the first one is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._remove_unfinished()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
        with _orbax_silent():
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        with _orbax_silent():
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, number: int, tree: PyTree, note: dict[str, Any]) -> None:
        """Write a checkpoint and wait until it is complete.

        Raises:
            OSError: it cannot be written; those before it are untouched.
        """
        checked_note = {"content": note, "note_sha256": sha256_of({}, note), "sha256": sha256_of(tree, note)}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), note=ocp.args.JsonSave(checked_note))
        try:
            with _orbax_silent():
                self._manager.save(number, args=args)
                self._manager.wait_until_finished()
        except ValueError as error:  # TensorStore's own form of what the operating system refuses
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            reason = os.strerror(int(code[1]))
            raise OSError(f"cannot write checkpoint {number} in {self.directory}: {reason}") from error

    def _remove_unfinished(self) -> None:
        """Remove what a writer that was killed, or met a full disk, left half-written."""
        for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path)

    def read_note(self) -> dict[str, Any]:
        """Read the note of the newest checkpoint alone.

        Raises:
            InputError: there is no checkpoint, or it is damaged; names the one before it.
        """
        with self._reading() as number:
            note = self._manager.restore(number, args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]
            _require_equal(sha256_of({}, note["content"]), note["note_sha256"])
            return note["content"]

    def restore(self, example: PyTree) -> tuple[int, PyTree, dict[str, Any]]:
        """Read the newest checkpoint into the form of ``example``, on the devices that it is on.

        Returns:
            Its number, the tree, and the note.

        Raises:
            InputError: there is none, it is damaged, or it is of another form; names the one before it.
        """
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(jax.tree.map(_abstract, example)), note=ocp.args.JsonRestore()
        )
        with self._reading() as number:
            restored = self._manager.restore(number, args=args)
            note = restored["note"]["content"]
            _require_equal(sha256_of(restored["tree"], note), restored["note"]["sha256"])
        return number, placed_like(example, restored["tree"]), note

    @contextlib.contextmanager
    def _reading(self) -> Iterator[int]:
        """Yield the number of the newest checkpoint, and say of which one the body finds damage."""
        number = self.latest
        if number is None:
            raise InputError(f"no checkpoint in {self.directory}: nothing to restore")
        try:
            with _orbax_silent():
                yield number
        # Orbax and TensorStore report damage with any exception type, Exception itself among them.
        except Exception as error:
            raise InputError(self._damage(number, error)) from error

    def _damage(self, number: int, error: Exception) -> str:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        before = max((step for step in self._manager.all_steps() if step < number), default=None)
        mend = "begin anew" if before is None else f"go on from checkpoint {before}"
        folder = self.directory / str(number)
        return f"checkpoint {number} in {self.directory} cannot be restored ({reason}): to {mend}, remove {folder}"


def _require_equal(sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise ValueError("its content is not what its checksum says: bits changed on the disk")


def sha256_of(tree: PyTree, note: Mapping[str, Any] | None = None) -> str:
    """Hash every array's name, type, shape and bytes, and a note."""
    digest = hashlib.sha256(json.dumps(note or {}, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def placed_like(example: PyTree, arrays: PyTree) -> PyTree:
    """Place arrays on the devices, and with the shardings, of ``example``; in numpy where it has numpy's."""

    def place(example: Any, array: Any) -> Any:
        if not isinstance(example, jax.Array):
            return np.asarray(array)
        # What is committed to a device is compiled for anew; these run in the programs of a whole run.
        return jax.device_put(array, example.sharding) if example.committed else jnp.array(np.asarray(array))

    return jax.tree.map(place, example, arrays)


@contextlib.contextmanager
def _orbax_silent() -> Iterator[None]:
    """Silence Orbax's log and its threads' reports of an error that it raises too; the error says it once.

    Threads may still report when the call has failed: from then on, such reports are dropped. TensorStore's may do so
    while the interpreter ends, where no hook helps: a process that is to be silent then ends by ``os._exit``.
    """
    logger = logging.getLogger("absl")
    level, report = logger.level, sys.unraisablehook

    def without_tensorstore(unraisable: sys.UnraisableHookArgs) -> None:
        reason = str(unraisable.exc_value)
        if reason != "Event loop is closed" and "TensorStore" not in reason:
            report(unraisable)

    logger.setLevel(logging.CRITICAL + 1)
    logger.addFilter(_is_of_no_thread)
    sys.unraisablehook = without_tensorstore
    try:
        yield
        sys.unraisablehook = report
    finally:
        logger.setLevel(level)


def _is_of_no_thread(record: logging.LogRecord) -> bool:
    return "_SignalingThread" not in record.getMessage()


def _abstract(leaf: Any) -> Any:
    """Read what is committed to devices by them, each its part; the rest by the host."""
    if isinstance(leaf, jax.Array) and leaf.committed:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.empty(leaf.shape, leaf.dtype)
