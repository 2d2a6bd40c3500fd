"""Readers of battles in public formats, and the writer of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from routerjax.data.preferences import OUTCOMES, Preferences
from routerjax.errors import InputError, nearest
from routerjax.prompts import valid_text
from routerjax.tables import ENDINGS, read_table, require_columns, table_columns, write_table

ARENA_COLUMNS = ("model_a", "model_b", "prompt", "winner_model_a", "winner_model_b", "winner_tie")
"""Chatbot Arena 55k (``lmsys/lmsys-arena-human-preference-55k``)."""

ARENA_MIN_CHARACTERS = 16
"""RouteLLM drops Arena prompts shorter than this, spaces around them not counted: greetings, which say nothing about
the models. Its published embeddings are aligned with the rows that this leaves."""

BOTH_BAD = "tie (bothbad)"
"""Chatbot Arena's other tie: the voter liked neither answer."""


def read_preferences(source: str | os.PathLike[str], *, drop_where: Sequence[str] = ()) -> Preferences:
    """Read battles from a file, or from the Hugging Face hub.

    Two formats, told apart by their columns:

    - Chatbot Arena 55k: ``prompt`` is a JSON list of turns, of which the first is kept; exactly one of
      ``winner_model_a``, ``winner_model_b``, ``winner_tie`` is 1. Prompts under 16 characters are dropped.
    - ``prompt``, ``model_a``, ``model_b``, and ``winner`` (model_a, model_b, tie, or Arena's "tie (bothbad)") or
      ``preference_b`` (0 to 1, that b is better) or both, and optionally ``weight``. Where both are given,
      ``preference_b`` is the outcome, except that a tie at 0.5 is a tie and not a coin flip.

    Args:
        source: a .parquet, .csv or .jsonl file; or the name of a Hugging Face data set, whose ``train`` split is read.
        drop_where: names of boolean columns; a row is dropped where any of them is true.

    Raises:
        InputError: no such source, columns missing or misspelt, or rows that are no battles (row and column named).
    """
    columns, read = open_source(source)
    require_columns(columns, drop_where, source)
    is_arena = any(name in columns for name in ARENA_COLUMNS[3:])
    if is_arena:
        require_columns(columns, ARENA_COLUMNS, source)
        wanted = list(ARENA_COLUMNS)
    else:
        require_columns(columns, ["prompt", "model_a", "model_b"], source)
        if not {"winner", "preference_b"} & set(columns):
            close = "".join(nearest(name, columns) for name in ("winner", "preference_b"))
            raise InputError(f"{source} has neither column winner nor preference_b{close}; it has {', '.join(columns)}")
        optional = [name for name in ("winner", "preference_b", "weight") if name in columns]
        wanted = ["prompt", "model_a", "model_b", *optional]
    table = read([*wanted, *(name for name in drop_where if name not in wanted)])
    for name in ("prompt", "model_a", "model_b"):
        _require_text(table.column(name), name, source)
    # Row numbers in errors are those of the file, so rows are checked before any is dropped.
    outcome = _arena_outcome(table, source) if is_arena else _table_outcome(table, source)
    prompts = table.column("prompt").to_pylist()
    keep = np.ones(len(prompts), bool)
    if is_arena:
        prompts = [_first_turn(text, row, source) for row, text in enumerate(prompts)]
        keep = np.asarray([len(prompt.strip()) >= ARENA_MIN_CHARACTERS for prompt in prompts])
    for name in drop_where:
        keep &= ~_boolean(table.column(name), name, source)
    if not keep.any():
        raise InputError(f"{source} has no battles left: all {len(prompts)} rows were dropped")
    weight = _numbers(table.column("weight"), "weight", source) if "weight" in wanted else np.ones(len(prompts))
    model_a, model_b = table.column("model_a").to_pylist(), table.column("model_b").to_pylist()
    try:
        # A dropped row may have an empty prompt, and must not shift the numbers of the rows that errors name.
        shown = [prompt if kept else "(dropped)" for prompt, kept in zip(prompts, keep, strict=True)]
        kept = Preferences.from_names(shown, model_a, model_b, outcome, weight).select(keep)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return kept.without_unused_models()


Reader = Callable[[list[str]], pa.Table]


def open_source(source: str | os.PathLike[str]) -> tuple[list[str], Reader]:
    """Names of the columns of a table file or a Hugging Face data set (its ``train`` split), and what reads some.

    Raises:
        InputError: no such source.
    """
    is_file = Path(source).suffix in ENDINGS or Path(source).exists()
    if not is_file and len(Path(source).parts) != 2:
        raise InputError(f"no file {source}; a Hugging Face data set is named owner/name")
    return _open_file(source) if is_file else _open_hub(os.fspath(source))


def _open_file(path: str | os.PathLike[str]) -> tuple[list[str], Reader]:
    return table_columns(path), lambda wanted: read_table(path, columns=wanted)


def _open_hub(name: str) -> tuple[list[str], Reader]:
    import datasets  # a second of imports that only the hub needs

    try:
        split = datasets.load_dataset(name, split="train")
    except (ValueError, OSError) as error:  # what `datasets` raises for unknown names, gated sets, and no network
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot read {name!r}, which is no file here, from the Hugging Face hub: {reason}") from error
    if not isinstance(split, datasets.Dataset):
        raise InputError(f"the data set {name!r} has no plain train split")
    columns = split.column_names
    return columns, lambda wanted: split.select_columns(wanted).with_format("arrow")[:]


def _require_text(column: pa.ChunkedArray, name: str, source: object) -> None:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not is_text and not pa.types.is_null(column.type):
        raise InputError(f"{source}: column {name} must be text, got {column.type}")
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise InputError(
            f"{source}: row {row}: column {name} must be text, got nothing ({column.null_count} such rows)"
        )


def _numbers(column: pa.ChunkedArray, name: str, source: object) -> Float64[np.ndarray, "rows"]:
    """The column as float64; what is missing becomes NaN."""
    try:
        return column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"{source}: column {name} must be numbers: {error}") from error


def _boolean(column: pa.ChunkedArray, name: str, source: object) -> np.ndarray:
    try:
        return column.cast(pa.bool_()).fill_null(False).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"{source}: column {name} must be true or false: {error}") from error


def _first_turn(text: str, row: int, source: object) -> str:
    """First turn of Arena's JSON list; a missing turn (null) is empty text, a lone surrogate becomes U+FFFD."""
    try:
        turns = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: row {row}: column prompt must be a JSON list of turns: {error}") from error
    if not isinstance(turns, list) or not turns or not (turns[0] is None or isinstance(turns[0], str)):
        raise InputError(f"{source}: row {row}: column prompt must be a JSON list of turns, got {text[:60]!r}")
    return valid_text(turns[0] or "")


def _arena_outcome(table: pa.Table, source: object) -> Float64[np.ndarray, "rows 3"]:
    names = ("winner_model_a", "winner_tie", "winner_model_b")
    outcome = np.stack([_numbers(table.column(name), name, source) for name in names], axis=1)
    bad = np.flatnonzero(~(np.isin(outcome, (0, 1)).all(axis=1) & (outcome.sum(axis=1) == 1)))
    if bad.size:
        got = dict(zip(names, outcome[bad[0]].tolist(), strict=True))
        raise InputError(f"{source}: row {bad[0]}: exactly one of {', '.join(names)} must be 1, got {got}")
    return outcome


def _table_outcome(table: pa.Table, source: object) -> Float64[np.ndarray, "rows 3"]:
    outcomes = {**OUTCOMES, BOTH_BAD: OUTCOMES["tie"]}
    outcome = np.full((table.num_rows, 3), np.nan)
    if "winner" in table.column_names:
        for row, winner in enumerate(table.column("winner").to_pylist()):
            if winner not in outcomes:
                known = nearest(str(winner), outcomes)
                raise InputError(
                    f"{source}: row {row}: column winner must be {', '.join(outcomes)}, got {winner!r}{known}"
                )
            outcome[row] = outcomes[winner]
    if "preference_b" in table.column_names:
        preference_b = _numbers(table.column("preference_b"), "preference_b", source)
        given = ~np.isnan(preference_b) if "winner" in table.column_names else np.ones(table.num_rows, bool)
        bad = np.flatnonzero(given & ~((preference_b >= 0) & (preference_b <= 1)))
        if bad.size:
            got = preference_b[bad[0]]
            raise InputError(f"{source}: row {bad[0]}: column preference_b must be in [0, 1], got {got}")
        contradicts = given & ((outcome[:, 0] - outcome[:, 2]) * (preference_b - 0.5) > 0)
        if contradicts.any():
            row = np.flatnonzero(contradicts)[0]
            raise InputError(
                f"{source}: row {row}: column preference_b is {preference_b[row]}, against column winner "
                f"({contradicts.sum()} such rows)"
            )
        soft = given & ~((outcome[:, 1] == 1) & (preference_b == 0.5))
        outcome[soft] = np.stack([1 - preference_b, np.zeros_like(preference_b), preference_b], axis=1)[soft]
    return outcome


def write_preferences(battles: Preferences, path: str | os.PathLike[str]) -> None:
    """Write battles as a table that :func:`read_preferences` gives back.

    Columns ``prompt``, ``model_a``, ``model_b``, ``winner`` (the likeliest outcome), ``preference_b``, ``weight``.
    Outcomes that mix a tie with a win have no place in this format.

    Raises:
        InputError: such an outcome (row named), the file exists, or its ending is none of .parquet, .csv, .jsonl.
    """
    tie = battles.outcome[:, 1]
    mixed = np.flatnonzero((tie > 0) & (tie < 1))
    if mixed.size:
        raise InputError(f"row {mixed[0]}: column outcome mixes a tie with a win, which the format cannot hold")
    preference_b = 1.0 - battles.label
    winner = np.select([tie == 1, preference_b < 0.5, preference_b > 0.5], ["tie", "model_a", "model_b"], "tie")
    coin_flip = np.flatnonzero((winner == "tie") & (tie == 0))
    if coin_flip.size:
        raise InputError(f"row {coin_flip[0]}: column outcome is a coin flip, which the format would read as a tie")
    names = np.asarray(battles.models, object)
    table = pa.table(
        {
            "prompt": list(battles.prompts),
            "model_a": names[battles.model_a].tolist(),
            "model_b": names[battles.model_b].tolist(),
            "winner": winner.tolist(),
            "preference_b": preference_b,
            "weight": battles.weight,
        }
    )
    write_table(table, os.fspath(path))
