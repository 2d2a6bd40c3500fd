"""Metrics of a run: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorboardX

from routerjax.atomic import atomic_file


class MetricsLog:
    """Rows of an epoch each, in ``metrics.jsonl`` and TensorBoard event files.

    Args:
        directory: where they go.
        history: rows of epochs that a resumed run has behind it. What the interrupted run wrote after its last
            checkpoint is dropped: those epochs run again.
    """

    def __init__(self, directory: Path, history: Sequence[Mapping[str, float]]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in history))
        self._lines = path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=len(history) + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()
        self._board.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; ``row["epoch"]`` is its place on TensorBoard's axis."""
        self._lines.write(json.dumps(dict(row)) + "\n")
        self._lines.flush()
        for name, value in row.items():
            if name != "epoch":
                self._board.add_scalar(name, value, int(row["epoch"]))
