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
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from routerjax import distributed
from routerjax.errors import InputError
from routerjax.training.fingerprint import fingerprint
from routerjax.typing import PyTree


class Checkpoints:
    """Numbered checkpoints of trees of arrays with a small JSON note; the newest are kept, and those that are chosen.

    Orbax writes each in the background, into a temporary folder that it renames when it is complete, so that a killed
    writer leaves the checkpoint before it as the newest. Each carries fingerprints of all that it holds: one bit that
    changed on the disk is noticed when it is read, whichever file it is in. Where several processes share a run, all of
    them call each function, and each writes and reads what its devices hold.

    Args:
        directory: where they are; made when the first one is written.
        keep_last: so many of the newest are kept.
    """

    def __init__(self, directory: Path, *, keep_last: int = 2) -> None:
        self.directory = directory.absolute()
        self._policy, self._number = _Newest(keep_last), 0
        distributed.by_first(self._remove_unfinished)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, create=True, enable_async_checkpointing=True
        )
        self._silence = _orbax_silent()
        self._silence.__enter__()
        self._manager = _Manager(self.directory, options=options)
        for number in self._manager.all_steps():
            with contextlib.suppress(Exception):  # a damaged one is said to be when it is wanted
                self._policy.chosen[number] = set(self._note(number)["chosen"])

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.wait()
        except OSError:
            if kind is None:
                raise
        finally:
            self._manager.close()
            self._silence.__exit__(kind, error, trace)

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, number: int, trees: Mapping[str, PyTree], note: dict[str, Any], *, chosen: Collection[int] = ()
    ) -> None:
        """Begin to write a checkpoint, once the one before it is complete; the arrays may be donated at once.

        Args:
            number: larger than those before it.
            trees: by names, by which some of them can be restored alone.
            note: JSON.
            chosen: numbers of checkpoints, this one perhaps among them, that are kept as long as this one is.

        Raises:
            OSError: this one or the one before it cannot be written; those before are untouched.
        """
        self.wait()
        self._policy.chosen[number] = set(chosen)
        content = {
            "content": note,
            "chosen": sorted(chosen),
            "fingerprints": {name: fingerprint(tree) for name, tree in trees.items()},
        }
        checked_note = {**content, "sha256": _sha256(content)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._written(number):
            self._manager.save(number, args=ocp.args.Composite(**items, note=ocp.args.JsonSave(checked_note)))
        self._number = number

    def wait(self) -> None:
        """Wait until the newest checkpoint is complete.

        Raises:
            OSError: it cannot be written.
        """
        with self._written(self._number):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _written(self, number: int) -> Iterator[None]:
        try:
            yield
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
        with self._reading(self.latest) as number:
            return self._note(number)["content"]

    def _note(self, number: int) -> dict[str, Any]:
        args = ocp.args.Composite(note=ocp.args.JsonRestore())
        return _checked(self._manager.restore(number, args=args)["note"])

    def restore(
        self, examples: Mapping[str, PyTree], *, number: int | None = None
    ) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
        """Read a checkpoint into the form of ``examples``, on the devices that they are on.

        Args:
            examples: those of its trees that are wanted.
            number: the newest if it is None.

        Returns:
            Its number, the trees, and the note.

        Raises:
            InputError: there is none, it is damaged, or it is of another form; names the one before it.
        """
        items = {name: ocp.args.StandardRestore(jax.tree.map(_abstract, example)) for name, example in examples.items()}
        with self._reading(self.latest if number is None else number) as number:
            args = ocp.args.Composite(**items, note=ocp.args.JsonRestore())
            restored = self._manager.restore(number, args=args)
            note = _checked(restored["note"])
            for name in examples:
                _require_equal(fingerprint(restored[name]), note["fingerprints"][name])
        trees = {name: placed_like(example, restored[name]) for name, example in examples.items()}
        return number, trees, note["content"]

    @contextlib.contextmanager
    def _reading(self, number: int | None) -> Iterator[int]:
        """Yield the number of a checkpoint, and say of it that the body finds damage."""
        if number is None:
            raise InputError(f"no checkpoint in {self.directory}: nothing to restore")
        try:
            yield number
        # Orbax and TensorStore report damage with any exception type, Exception itself among them.
        except Exception as error:
            raise InputError(self._damage(number, error)) from error

    def _damage(self, number: int, error: Exception) -> str:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = reason.partition(" [tensorstore_spec")[0]  # pages of JSON
        before = max((step for step in self._manager.all_steps() if step < number), default=None)
        mend = "begin anew" if before is None else f"go on from checkpoint {before}"
        folder = self.directory / str(number)
        return f"checkpoint {number} in {self.directory} cannot be restored ({reason}): to {mend}, remove {folder}"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which tells JAX no step of its own: a stop of all processes is agreed on by the loop's calls."""

    def reached_preemption(self, step: int) -> bool:
        """Leave it to :func:`routerjax.distributed.is_preempted`."""
        del step
        return False


class _Newest:
    """Rule of Orbax's for which checkpoints are kept: so many of the newest, and those that these have chosen."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.chosen: dict[int, set[int]] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> Sequence[bool]:
        """Say of each checkpoint, in the order of their numbers, if it is kept."""
        del context
        numbers = [info.step for info in checkpoints]
        newest = set(numbers[-self.count :])
        kept = newest.union(*(self.chosen.get(number, set()) for number in newest))
        return [number in kept for number in numbers]


def _checked(note: dict[str, Any]) -> dict[str, Any]:
    _require_equal(_sha256({name: note[name] for name in ("content", "chosen", "fingerprints")}), note["sha256"])
    return note


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _require_equal(sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise ValueError("its content is not what its checksum says: bits changed on the disk")


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
