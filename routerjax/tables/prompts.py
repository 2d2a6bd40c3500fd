"""Tables of prompts to score, from files or from standard input."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from routerjax.errors import InputError
from routerjax.tables.columns import require_columns, text_column
from routerjax.tables.json_lines import json_objects, text_lines
from routerjax.tables.read import OpenTable, json_table, open_json_lines, open_table

logger = logging.getLogger(__name__)

INPUT_FORMATS = ("text", "jsonl")
"""Formats of lines: one prompt a line, or one JSON object with a key ``prompt``."""


@dataclass(frozen=True, eq=False)
class PromptTable:
    """Prompts, with the columns beside them.

    Attributes:
        prompts: one a row.
        columns: names of all columns, ``prompt`` among them.
        table: what they were read from, for :func:`routerjax.tables.prepare`.
    """

    prompts: list[str]
    columns: list[str]
    table: OpenTable | pa.Table


def read_prompt_table(path: str, *, input_format: str | None = None, progress: bool = False) -> PromptTable:
    """Read prompts and the columns beside them.

    Args:
        path: a .parquet, .csv or .jsonl file with a column ``prompt``; ``-`` is standard input, always UTF-8.
        input_format: of :data:`INPUT_FORMATS`, whatever the file's ending; default for standard input: ``text``. Blank
            lines are passed over.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: as :func:`routerjax.tables.read.open_table`, or a prompt that is no text; row or line is named.
    """
    if path == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed, and - reads it: give a file")
        where = Path("standard input")
        if input_format == "jsonl":
            return _prompt_table(json_table(list(json_objects(sys.stdin.buffer, where)), where), progress)
        return _text_prompts(sys.stdin.buffer, where)
    if input_format is None:
        return _prompt_table(open_table(path, progress=progress), progress)
    if not Path(path).is_file():
        raise InputError(f"no file {path}")
    if input_format == "jsonl":
        return _prompt_table(open_json_lines(Path(path), progress), progress)
    with open(path, "rb") as stream:
        return _text_prompts(stream, Path(path))


def _prompt_table(table: OpenTable, progress: bool) -> PromptTable:
    require_columns(table.columns, ["prompt"], table.path)
    prompts = text_column(table.read(["prompt"], progress=progress), "prompt", table.path).rows()
    return PromptTable(prompts, table.columns, table)


def _text_prompts(stream: BinaryIO, where: Path) -> PromptTable:
    prompts = [text for _, text in text_lines(stream, where) if text.strip()]
    if not prompts:
        raise InputError(f"{where} is empty: expected one prompt a line")
    if prompts[0].lstrip().startswith("{"):
        logger.warning("%s begins with {: each line is a prompt; --input-format jsonl reads JSON objects", where)
    return PromptTable(prompts, ["prompt"], pa.table({"prompt": prompts}))
