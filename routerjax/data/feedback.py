"""Feedback that ``routerjax serve`` logged, as battles.

Lines of JSON are decisions and feedback on them. A decision has ``event`` "decision", ``request_id``, and the text that
was scored as ``prompt``, or its hash as ``prompt_sha256``. Feedback has ``event`` "feedback", the ``request_id``,
``model_a``, ``model_b`` and ``winner`` as a table of battles has them. The last feedback on a request and a pair of
models counts.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from routerjax.errors import InputError
from routerjax.prompts import valid_text
from routerjax.tables import OpenTable
from routerjax.tables.json_lines import json_objects

logger = logging.getLogger(__name__)

DECISION, FEEDBACK = "decision", "feedback"
COLUMNS = ("prompt", "model_a", "model_b", "winner")


class _Battle(NamedTuple):
    request_id: str
    model_a: str
    model_b: str
    winner: str


def is_feedback_log(path: Path) -> bool:
    """Return True of a file whose first line is one of such a log."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as lines, contextlib.suppress(InputError):
        for first in itertools.islice(json_objects(lines, path), 1):
            return {"event", "request_id"} <= set(first.row)
    return False


def open_feedback_log(path: Path) -> OpenTable:
    """Read the battles of a log: feedback, each with the prompt of its decision.

    Feedback whose prompt was logged as a hash, is empty, or is not in this file, is left out, and how much of it is
    logged: clients do send empty prompts, on which nothing can be learnt.

    Raises:
        InputError: a damaged line, or no battle with its prompt.
    """
    prompts: dict[str, str | None] = {}
    battles: dict[tuple[str, frozenset[str]], _Battle] = {}
    with path.open("rb") as lines:
        for line, _, row in json_objects(lines, path):
            event, request_id = row.get("event"), row.get("request_id")
            if event not in (DECISION, FEEDBACK) or not isinstance(request_id, str):
                raise InputError(f"{path}: line {line} is no {DECISION} and no {FEEDBACK} with a request_id")
            if event == DECISION:
                prompt = row.get("prompt")
                prompts[request_id] = valid_text(prompt) if isinstance(prompt, str) else None
                continue
            fields = [valid_text(value) for name in COLUMNS[1:] if isinstance(value := row.get(name), str)]
            if len(fields) < len(COLUMNS[1:]):
                raise InputError(f"{path}: line {line}: feedback has {', '.join(COLUMNS[1:])}, each text")
            battle = _Battle(request_id, *fields)
            key = (request_id, frozenset((battle.model_a, battle.model_b)))
            battles.pop(key, None)  # the later one stands where it was given
            battles[key] = battle
    known = [battle for battle in battles.values() if (prompts.get(battle.request_id) or "").strip()]
    left_out = len(battles) - len(known)
    if not known:
        why = f"{left_out} without a prompt that has text: serve with --preferences-text" if left_out else "none"
        raise InputError(f"{path} has no battles: feedback on a decision makes one, and it has {why}")
    if left_out:
        logger.warning(
            "%s: %d of %d battles are left out, whose prompt is not in it, or empty", path, left_out, len(battles)
        )
    columns = {
        "prompt": [prompts[battle.request_id] for battle in known],
        **{name: [getattr(battle, name) for battle in known] for name in COLUMNS[1:]},
    }
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    def read(names: Sequence[str] | None, progress: bool) -> pa.Table:
        del progress
        return table.select(list(names or COLUMNS))

    return OpenTable(path, list(COLUMNS), read)
