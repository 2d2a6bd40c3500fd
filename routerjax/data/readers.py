"""Readers of battles in public formats, and the writer of our own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float64

from routerjax.data.feedback import is_feedback_log, open_feedback_log
from routerjax.data.preferences import OUTCOMES, ROW_SUM_TOLERANCE, Preferences
from routerjax.errors import InputError, nearest, require_extra
from routerjax.prompts import valid_text
from routerjax.tables import (
    ENDINGS,
    OpenTable,
    Texts,
    flag_column,
    number_column,
    open_table,
    require_columns,
    text_column,
    write_table,
)
from routerjax.tables.chunks import json_chunks
from routerjax.tables.dictionaries import joined_table
from routerjax.tables.read import shown

ARENA_COLUMNS = ("model_a", "model_b", "prompt", "winner_model_a", "winner_model_b", "winner_tie")
"""Chatbot Arena 55k (``lmsys/lmsys-arena-human-preference-55k``)."""

ARENA_MIN_CHARACTERS = 16
"""RouteLLM drops Arena prompts shorter than this, spaces around them not counted: greetings, which say nothing about
the models. Its published embeddings are aligned with the rows that this leaves."""

BATTLE_COLUMNS = (*ARENA_COLUMNS, "winner", "preference_b", "preference_tie", "preference_both_bad", "weight")

# Files of JSON objects up to this are read at once, which takes half of the time and some ten times the file in memory.
JSON_BYTES_AT_ONCE = 2**26
# Rows that are read at a time where they are not mapped as they are.
ROWS_A_PART = 2**16

WINNERS = {**{name: place for place, name in enumerate(OUTCOMES)}, "tie (bothbad)": OUTCOMES.index("both_bad")}
"""Place among the outcomes of each value of a column ``winner``; the last is Chatbot Arena's older spelling."""

SOFT_TIES = ("preference_tie", "preference_both_bad")

DROPPED = "(dropped)"


def read_preferences(
    source: str | os.PathLike[str], *, drop_where: Sequence[str] = (), progress: bool = False
) -> Preferences:
    """Read battles from a file, or from the Hugging Face hub.

    Three formats, told apart by their columns:

    - Chatbot Arena 55k: ``prompt`` is a JSON list of turns, of which the first is kept; exactly one of
      ``winner_model_a``, ``winner_model_b``, ``winner_tie`` is 1. Prompts under 16 characters are dropped.
    - ``prompt``, ``model_a``, ``model_b``, and ``winner`` (model_a, model_b, tie, both_bad, or "tie (bothbad)") or
      ``preference_b`` (0 to 1, that b is better, ties counting half) or both, and optionally ``weight``. Where both are
      given, ``preference_b`` is the outcome, except that a tie at 0.5 is a tie and not a coin flip. How much of it is
      ties may be said by ``preference_tie`` and ``preference_both_bad`` (0 to 1).
    - The log of ``routerjax serve --log-preferences``: see :mod:`routerjax.data.feedback`.

    A table that says of any battle that both answers were bad has four outcomes, others have three.

    Args:
        source: a .parquet, .csv or .jsonl file; or the name of a Hugging Face data set, whose ``train`` split is read.
        drop_where: names of boolean columns; a row is dropped where any of them is true.
        progress: show a progress bar, if reading takes more than two seconds.

    Raises:
        InputError: no such source, columns missing or misspelt, or rows that are no battles (row and column named).
    """
    path = Path(source)
    is_large = path.suffix == ".jsonl" and path.is_file() and path.stat().st_size > JSON_BYTES_AT_ONCE
    if is_feedback_log(path):
        table = open_feedback_log(path)
    else:
        table = _open_lines(path, drop_where) if is_large else open_source(source, progress=progress)
    require_columns(table.columns, drop_where, source)
    is_arena = any(name in table.columns for name in ARENA_COLUMNS[3:])
    if is_arena:
        require_columns(table.columns, ARENA_COLUMNS, source)
        wanted = list(ARENA_COLUMNS)
    else:
        require_columns(table.columns, ["prompt", "model_a", "model_b"], source)
        if not {"winner", "preference_b"} & set(table.columns):
            close = "".join(nearest(name, table.columns) for name in ("winner", "preference_b"))
            raise InputError(
                f"{source} has neither column winner nor preference_b{close}; it has {', '.join(table.columns)}"
            )
        soft = [name for name in SOFT_TIES if name in table.columns]
        if soft:
            require_columns(table.columns, ["preference_b", SOFT_TIES[0]], source)
        optional = [name for name in ("winner", "preference_b", *soft, "weight") if name in table.columns]
        wanted = ["prompt", "model_a", "model_b", *optional]
    rows = table.read([*wanted, *(name for name in drop_where if name not in wanted)], progress=progress)
    # Row numbers in errors are those of the file, so rows are checked before any is dropped.
    prompt, model_a, model_b = (text_column(rows, name, source) for name in ("prompt", "model_a", "model_b"))
    outcome = _arena_outcome(rows, source) if is_arena else _table_outcome(rows, source)
    weight = number_column(rows, "weight", source) if "weight" in wanted else np.ones(rows.num_rows, np.float32)
    keep = np.ones(rows.num_rows, bool)
    if is_arena:
        prompt = _first_turns(prompt, source)
        is_long = np.asarray([len(text.strip()) >= ARENA_MIN_CHARACTERS for text in prompt.unique])
        keep = is_long[prompt.index]
    for name in drop_where:
        keep &= ~flag_column(rows, name, source, required=False)
    if not keep.any():
        raise InputError(f"{source} has no battles left: all {len(keep)} rows were dropped")
    del rows
    pa.default_memory_pool().release_unused()  # what Arrow keeps for more tables is as large as this one was
    models = sorted({*model_a.unique, *model_b.unique})
    column = {name: place for place, name in enumerate(models)}
    # A dropped row may have an empty prompt, and must not shift the numbers of the rows that errors name.
    unique_prompts = tuple(dict.fromkeys((*prompt.unique, DROPPED)))
    try:
        battles = Preferences(
            unique_prompts=unique_prompts,
            prompt_index=np.where(keep, prompt.index, unique_prompts.index(DROPPED)),
            model_a=np.asarray([column[name] for name in model_a.unique], np.int32)[model_a.index],
            model_b=np.asarray([column[name] for name in model_b.unique], np.int32)[model_b.index],
            outcome=outcome,
            weight=weight,
            models=tuple(models),
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return battles if keep.all() else battles.select(keep).without_unused_models()


def open_source(source: str | os.PathLike[str], *, progress: bool = False) -> OpenTable:
    """Open a table file or a Hugging Face data set (its ``train`` split).

    Raises:
        InputError: no such source.
    """
    is_file = Path(source).suffix in ENDINGS or Path(source).exists()
    if not is_file and len(Path(source).parts) != 2:
        raise InputError(
            f"no file {source}: expected a table ({', '.join(ENDINGS)}); a Hugging Face data set is named owner/name"
        )
    return open_table(source, progress=progress) if is_file else _open_hub(os.fspath(source))


def _open_lines(path: Path, drop_where: Sequence[str]) -> OpenTable:
    """Open a file of JSON objects that is read part by part, once for the columns' types and once for the columns."""
    lines = json_chunks(functools.partial(path.open, "rb"), path, [*BATTLE_COLUMNS, *drop_where])

    def read(columns: Sequence[str] | None, progress: bool) -> pa.Table:
        names = columns or lines.columns
        return joined_table(shown(lines.read(names, ROWS_A_PART), progress, None), names)

    return OpenTable(path, lines.columns, read)


def source_revision(source: str | os.PathLike[str]) -> str | None:
    """Revision of a Hugging Face data set: the commit of its repository; None of a file.

    Raises:
        InputError: no such data set, here or on the hub.
    """
    if Path(source).suffix in ENDINGS or Path(source).exists() or len(Path(source).parts) != 2:
        return None
    _require_hub(os.fspath(source))
    import datasets  # a second of imports that only the hub needs

    with _hub_errors(os.fspath(source)):
        return datasets.load_dataset_builder(os.fspath(source)).hash


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:  # what `datasets` raises for unknown names, gated sets, and no network
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"cannot read {name!r}, which is no file here, from the Hugging Face hub: {reason}") from error


def _require_hub(name: str) -> None:
    require_extra("hub", "datasets", f"{name!r}, which is no file here but a data set of the Hugging Face hub,")


def _open_hub(name: str) -> OpenTable:
    _require_hub(name)
    import datasets  # a second of imports that only the hub needs

    with _hub_errors(name):
        split = datasets.load_dataset(name, split="train")
    if not isinstance(split, datasets.Dataset):
        raise InputError(f"the data set {name!r} has no plain train split")

    def read(columns: Sequence[str] | None, _: bool) -> pa.Table:
        names = list(columns or split.column_names)
        return joined_table(split.select_columns(names).with_format("arrow").iter(ROWS_A_PART), names)

    return OpenTable(Path(name), split.column_names, read)


def _first_turns(prompt: Texts, source: object) -> Texts:
    """The first turns of Arena's JSON lists; a missing turn (null) is empty text, a lone surrogate becomes U+FFFD."""
    place: dict[str, int] = {}
    first = np.empty(len(prompt.unique), np.int32)
    for number, text in enumerate(prompt.unique):
        try:
            turns = json.loads(text)
        except (ValueError, RecursionError):
            turns = None
        if not isinstance(turns, list) or not turns or not (turns[0] is None or isinstance(turns[0], str)):
            row = np.flatnonzero(prompt.index == number)[0]
            shown = reprlib.repr(text)
            raise InputError(f"{source}: row {row}: column prompt must be a JSON list of turns, got {shown}")
        first[number] = place.setdefault(valid_text(turns[0] or ""), len(place))
    return Texts(list(place), first[prompt.index])


def _arena_outcome(table: pa.Table, source: object) -> Float64[np.ndarray, "rows 3"]:
    names = ("winner_model_a", "winner_tie", "winner_model_b")
    outcome = np.stack([number_column(table, name, source) for name in names], axis=1)
    bad = ~(np.isin(outcome, (0, 1)).all(axis=1) & (outcome.sum(axis=1) == 1))
    _refuse(bad, source, lambda row: f"exactly one of {', '.join(names)} must be 1, got {outcome[row].tolist()}")
    return outcome


def _table_outcome(table: pa.Table, source: object) -> Float[np.ndarray, "rows outcomes"]:
    has_winner, has_ties, has_both_bad = (name in table.column_names for name in ("winner", *SOFT_TIES))
    # Hard outcomes are exact in any type.
    kind = np.float64 if "preference_b" in table.column_names else np.float32
    outcome = np.full((0 if has_winner else table.num_rows, 4), np.nan, kind)
    if has_winner:
        winner = text_column(table, "winner", source)
        place = np.asarray([WINNERS.get(text, -1) for text in winner.unique])[winner.index]
        texts = [winner.unique[number] for number in winner.index[place < 0][:1]]
        near = "".join(nearest(text, WINNERS) for text in texts)
        _refuse(place < 0, source, lambda _: f"column winner must be {', '.join(WINNERS)}, got {texts[0]!r}{near}")
        outcome = np.eye(4, dtype=kind)[place]
        has_both_bad |= (place == 3).any()
    if "preference_b" in table.column_names:
        preference_b = _share_column(table, "preference_b", source, required=not has_winner)
        given = ~np.isnan(preference_b)
        contradicts = (outcome[:, 0] - outcome[:, 2]) * (preference_b - 0.5) > 0
        _refuse(contradicts, source, lambda row: f"column preference_b is {preference_b[row]}, against column winner")
        ties = np.zeros((table.num_rows, 2))
        for column, name in enumerate(SOFT_TIES):
            if name in table.column_names:
                ties[:, column] = _share_column(table, name, source, required=not has_winner)
                alone = np.isnan(ties[:, column]) == given
                _refuse(alone, source, lambda _, name=name: f"columns {name} and preference_b must be given together")
        wins = np.stack([1 - preference_b, preference_b], axis=1) - ties.sum(axis=1, keepdims=True) / 2
        _refuse(
            (wins < -ROW_SUM_TOLERANCE).any(axis=1),
            source,
            lambda row: f"column preference_b counts ties half, got {preference_b[row]} and ties {ties[row].tolist()}",
        )
        soft = given if has_ties else given & ~((outcome[:, 1::2].sum(axis=1) == 1) & (preference_b == 0.5))
        wins = np.maximum(wins, 0.0)
        outcome[soft] = np.stack([wins[:, 0], ties[:, 0], wins[:, 1], ties[:, 1]], axis=1)[soft]
    return outcome if has_both_bad else outcome[:, :3]


def _share_column(table: pa.Table, name: str, source: object, *, required: bool) -> Float64[np.ndarray, "rows"]:
    """A column of numbers in [0, 1], NaN where there is none."""
    share = number_column(table, name, source, required=required)
    _refuse((share < 0) | (share > 1), source, lambda row: f"column {name} must be in [0, 1], got {share[row]}")
    return share


def _refuse(bad: Bool[np.ndarray, "rows"], source: object, message: Callable[[int], str]) -> None:
    """Raise InputError with the message of the first bad row."""
    rows = np.flatnonzero(bad)
    if rows.size:
        more = f" ({rows.size} such rows)" if rows.size > 1 else ""
        raise InputError(f"{source}: row {rows[0]}: {message(int(rows[0]))}{more}")


def write_preferences(battles: Preferences, path: str | os.PathLike[str]) -> None:
    """Write battles as a table that :func:`read_preferences` gives back.

    Columns ``prompt``, ``model_a``, ``model_b``, ``winner`` (the likeliest outcome; ``tie`` of a coin flip),
    ``preference_b`` and ``weight``; and, where these do not say all, ``preference_tie`` and ``preference_both_bad``.

    Raises:
        InputError: the file exists, or its ending is none of .parquet, .csv, .jsonl.
    """
    outcome, preference_b = battles.outcome, 1.0 - battles.label
    is_flip = (outcome[:, 0] == outcome[:, 2]) & (outcome[:, 0] == outcome.max(axis=1))
    winner = np.asarray(OUTCOMES)[np.where(is_flip, 1, outcome.argmax(axis=1))]
    says_all = outcome.shape[1] == 3 and not (is_flip | ((outcome[:, 1] > 0) & (outcome[:, 1] < 1))).any()
    ties = {} if says_all else dict(zip(SOFT_TIES, outcome[:, 1::2].T, strict=False))
    prompts, names = pa.array(battles.unique_prompts, pa.large_string()), pa.array(battles.models, pa.string())
    table = pa.table(
        {
            "prompt": prompts.take(pa.array(battles.prompt_index)),
            "model_a": names.take(pa.array(battles.model_a)),
            "model_b": names.take(pa.array(battles.model_b)),
            "winner": winner.tolist(),
            "preference_b": preference_b,
            **ties,
            "weight": battles.weight,
        }
    )
    write_table(table, os.fspath(path))
