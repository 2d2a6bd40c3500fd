"""Log of decisions and of feedback on them, which :func:`routerjax.data.read_preferences` reads as battles."""

from __future__ import annotations

import collections
import contextlib
import datetime
import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routerjax.atomic import locked, open_log
from routerjax.data.feedback import DECISION, FEEDBACK
from routerjax.data.preferences import OUTCOMES
from routerjax.errors import InputError
from routerjax.prompts import prompt_sha256
from routerjax.serving.api_errors import SERVER, ApiError
from routerjax.serving.decisions import Decision
from routerjax.serving.text_scoring import TextScorer
from routerjax.tables.json_lines import json_objects

logger = logging.getLogger(__name__)

# Feedback on older decisions is refused: so many are known by their identity, 100 bytes each.
MOST_KNOWN = 1_000_000
LINE_START = b'{"event": '
TIES = tuple(name for name in OUTCOMES if not name.startswith("model_"))


class PreferenceLog:
    """File of JSON lines that is appended to; a whole line, or nothing, is written.

    Args:
        path: of the file; what is in it stays. A last line that a crash cut short is taken away, and that is logged.
        scorer: of the router, whose models feedback is about.
        with_text: write the text that was scored, which training needs, and not its SHA-256 alone.

    Raises:
        InputError: the file does not end in .jsonl, is no such log or no regular file, is damaged, or another
            server writes it.
    """

    def __init__(self, path: str | os.PathLike[str], scorer: TextScorer, *, with_text: bool = False) -> None:
        self._path, self._scorer, self._with_text = Path(path), scorer, with_text
        if self._path.suffix != ".jsonl":
            raise InputError(f"a log of preferences must end in .jsonl, by which train reads it, got {self._path}")
        self._closing = contextlib.ExitStack()
        self._file = open_log(self._path, os.O_RDWR)
        self._closing.callback(os.close, self._file)
        try:
            self._closing.enter_context(locked(self._file, self._path, "logs preferences to it"))
            self._known = self._read_known()
            self._repair()
        except BaseException:
            self._closing.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    def write_decision(self, request_id: str, text: str, decision: Decision, answered_by: str | None) -> None:
        """Write a decision; where the disk refuses, that is logged, and the request goes on.

        Args:
            request_id: that the client is told.
            text: that was scored.
            decision: of the router.
            answered_by: model that answered; None where none was asked.
        """
        prompt = {"prompt": text} if self._with_text else {"prompt_sha256": prompt_sha256(text).hex()}
        described = decision.described()
        chosen = {"chosen": described.pop("model"), "answered_by": answered_by}
        try:
            self._append({"event": DECISION, "request_id": request_id, **_now(), **prompt, **chosen, **described})
        except OSError as error:
            logger.error("a decision is not logged to %s: %s", self._path, error.strerror)
        else:
            self._remember(request_id)

    def write_feedback(self, fields: Mapping[str, Any]) -> None:
        """Write feedback on a decision.

        Args:
            fields: ``request_id``; ``winner``, a model, ``tie`` or ``both_bad``; and ``models``, the two that were
                compared, which a router of a pair need not be told.

        Raises:
            ApiError: an unknown request, or fields that are none of these; or the disk refuses.
        """
        unknown = sorted(set(fields) - {"request_id", "winner", "models"})
        if unknown:
            raise ApiError(400, f"no field {unknown[0]!r}: feedback has request_id, winner and models")
        request_id, winner = fields.get("request_id"), fields.get("winner")
        if not isinstance(request_id, str) or request_id not in self._known:
            message = "no decision is known by this request_id: it is that of the header x-routerjax-request-id"
            raise ApiError(404, message, code="unknown_request", param="request_id")
        model_a, model_b = self._pair(fields.get("models"))
        outcome = {model_a: "model_a", model_b: "model_b"}.get(winner) if isinstance(winner, str) else None
        if outcome is None and winner in TIES:
            outcome = winner
        if outcome is None:
            message = f"winner must be {model_a!r}, {model_b!r}, {' or '.join(map(repr, TIES))}"
            raise ApiError(400, message, param="winner")
        battle = {"model_a": model_a, "model_b": model_b, "winner": outcome}
        try:
            self._append({"event": FEEDBACK, "request_id": request_id, **_now(), **battle})
        except OSError as error:
            logger.error("feedback is not logged to %s: %s", self._path, error.strerror)
            raise ApiError(503, "the feedback could not be written", SERVER, code="not_recorded") from None

    def _pair(self, models: object) -> tuple[str, str]:
        pair, known = self._scorer.pair, self._scorer.models
        if models is None and pair is not None:
            return pair.strong, pair.weak
        if not isinstance(models, list) or len(models) != 2 or not all(model in known for model in models):
            raise ApiError(400, "models must be the two models of the router that were compared", param="models")
        if models[0] == models[1]:
            raise ApiError(400, "models must be two different models", param="models")
        return models[0], models[1]

    def _append(self, fields: Mapping[str, object]) -> None:
        line = json.dumps(fields).encode() + b"\n"
        size = os.fstat(self._file).st_size
        written = os.write(self._file, line)
        if written < len(line):  # a full disk
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _remember(self, request_id: str) -> None:
        self._known[request_id] = None
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _repair(self) -> None:
        """Take away a last line that was cut short, or end it where its end alone is missing."""
        with self._path.open("rb") as content:
            (last,) = collections.deque(content, 1) or (b"\n",)
        if _is_cut(last):
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(last))
            logger.warning("%s: its last line was cut short, %d bytes of it are taken away", self._path, len(last))
        elif not last.endswith(b"\n"):
            os.write(self._file, b"\n")

    def _read_known(self) -> collections.OrderedDict[str, None]:
        known: collections.OrderedDict[str, None] = collections.OrderedDict()
        with self._path.open("rb") as lines:
            for line, _, row in json_objects((line for line in lines if not _is_cut(line)), self._path):
                if row.get("event") not in (DECISION, FEEDBACK) or not isinstance(row.get("request_id"), str):
                    raise InputError(f"{self._path}: line {line} is none of a log of preferences: choose another file")
                if row["event"] == DECISION:
                    known[str(row["request_id"])] = None
        while len(known) > MOST_KNOWN:
            known.popitem(last=False)
        return known


def _is_cut(line: bytes) -> bool:
    """Return True of what a crash left of a line; what begins in another way is of another file, and stays."""
    if line.endswith(b"\n") or not LINE_START.startswith(line[: len(LINE_START)]):
        return False
    try:
        json.loads(line)
    except RecursionError:
        return False  # nothing that a log of preferences has
    except ValueError:
        return True
    return False


def _now() -> dict[str, str]:
    return {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
