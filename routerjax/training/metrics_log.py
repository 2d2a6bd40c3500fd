"""Metrics of a run: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from routerjax.atomic import atomic_file

logger = logging.getLogger(__name__)


class MetricsLog:
    """Rows of an epoch each, in ``metrics.jsonl`` and, where tensorboardX is installed, TensorBoard event files.

    Both are written by the caller's own thread, so that what the disk refuses is raised where it happens.

    Args:
        directory: where they go.
        history: rows of epochs that a resumed run has behind it. What the interrupted run wrote after its last
            checkpoint is dropped: those epochs run again.

    Raises:
        OSError: they cannot be written.
    """

    def __init__(self, directory: Path, history: Sequence[Mapping[str, float]]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))
        with contextlib.ExitStack() as stack:
            self._lines = stack.enter_context(path.open("a", encoding="utf-8"))
            self._board = None
            if importlib.util.find_spec("tensorboardX") is None:
                logger.info("no TensorBoard files: they need tensorboardX: pip install 'routerjax[tensorboard]'")
            else:
                self._board = stack.enter_context(_TensorBoard(directory / "tensorboard", len(history)))
            self._files = stack.pop_all()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; ``row["epoch"]`` is its place on TensorBoard's axis.

        Raises:
            OSError: it cannot be written.
        """
        self._lines.write(json.dumps(dict(row)) + "\n")
        self._lines.flush()
        if self._board is not None:
            self._board.write(row)


class _TensorBoard:
    """Event file in ``directory``; of what an interrupted run wrote, TensorBoard hides all after ``epochs``."""

    def __init__(self, directory: Path, epochs: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue] (generated)

        directory.mkdir(exist_ok=True)
        # Their names have a second's resolution: a run that is resumed within one must not replace the first file.
        self._events = EventsWriter(str(directory / "events"), f".{len(list(directory.iterdir()))}")
        self._add(epochs + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> _TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._events.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row."""
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name != "epoch":
                self._add(int(row["epoch"]), summary=scalar(name, value))
        self._events.flush()

    def _add(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] (generated)

        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
