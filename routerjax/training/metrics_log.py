"""Metrics of a run: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] (generated)
from tensorboardX.summary import scalar

from routerjax.atomic import atomic_file


class MetricsLog:
    """Rows of an epoch each, in ``metrics.jsonl`` and TensorBoard event files.

    Both are written by the caller's own thread, so that what the disk refuses is raised where it happens.

    Args:
        directory: where they go.
        history: rows of epochs that a resumed run has behind it. What the interrupted run wrote after its last
            checkpoint is dropped: those epochs run again.

    Raises:
        OSError: they cannot be written.
    """

    def __init__(self, directory: Path, history: Sequence[Mapping[str, float]]) -> None:
        board = directory / "tensorboard"
        board.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))
        with contextlib.ExitStack() as stack:
            self._lines = stack.enter_context(path.open("a", encoding="utf-8"))
            # Their names have a second's resolution: a run that is resumed within one must not replace the first file.
            suffix = f".{len(list(board.iterdir()))}"
            self._events = EventsWriter(str(board / "events"), suffix)
            stack.callback(self._events.close)
            # Of what an interrupted run wrote, TensorBoard hides this epoch and those after it.
            self._add(len(history) + 1, session_log=SessionLog(status=SessionLog.START))
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
        for name, value in row.items():
            if name != "epoch":
                self._add(int(row["epoch"]), summary=scalar(name, value))
        self._events.flush()

    def _add(self, step: int, **content: object) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
