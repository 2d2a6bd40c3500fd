"""Checkpoints of the training state; all that routerjax asks of Orbax is here."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
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
    checkpoint before it as the newest.

    Args:
        directory: where they are; made when the first one is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
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
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), note=ocp.args.JsonSave(note))
        try:
            with _orbax_silent():
                self._manager.save(number, args=args)
                self._manager.wait_until_finished()
        except ValueError as error:  # TensorStore's own form of what the operating system refuses
            if "os_error_code" not in str(error):
                raise
            reason = str(error).rsplit(": ", 1)[-1]
            raise OSError(f"cannot write checkpoint {number} in {self.directory}: {reason}") from error

    def restore(self, example: PyTree) -> tuple[int, PyTree, dict[str, Any]]:
        """Read the newest checkpoint into the form of ``example``.

        Returns:
            Its number, the tree, and the note.

        Raises:
            InputError: there is none, it is damaged, or it is of another form.
        """
        number = self.latest
        if number is None:
            raise InputError(f"no checkpoint in {self.directory}: nothing to restore")
        where = f"checkpoint {number} in {self.directory}"
        try:
            restored = self._manager.restore(
                number,
                args=ocp.args.Composite(
                    tree=ocp.args.StandardRestore(jax.tree.map(_abstract, example)), note=ocp.args.JsonRestore()
                ),
            )
        # Orbax and TensorStore report damage with many exception types, JSON's and the operating system's among them.
        except (ValueError, KeyError, TypeError, OSError, RuntimeError, json.JSONDecodeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{where} cannot be restored ({reason[0]}); remove that folder to go on from the one before it"
            ) from error
        # Orbax commits arrays to a device, for which jit compiles anew; these run in the programs of a whole run.
        tree = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), restored["tree"])
        return number, tree, restored["note"]


@contextlib.contextmanager
def _orbax_silent() -> Iterator[None]:
    """Orbax's threads also log the traceback of an error that it raises; the error says it once."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
