"""Tables of prompts to score, from files or from standard input."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import tqdm

from routerjax.errors import InputError, RowError
from routerjax.tables.chunks import ChunkedTable, json_chunks, table_chunks, text_chunks
from routerjax.tables.columns import encoded_texts, missing_text, require_columns, text_column
from routerjax.tables.read import require_table
from routerjax.tables.write import prepare, takes_json

INPUT_FORMATS = ("text", "jsonl")
"""Formats of lines: one prompt a line, or one JSON object with a key ``prompt``."""
VALIDATED_ROWS = 8192


@dataclass(frozen=True, eq=False)
class PromptTable:
    """Prompts, with the columns beside them, which are valid and are read chunk by chunk.

    Attributes:
        table: all columns, ``prompt`` among them.
        rows: their number.
        open_stream: opens the file, or what standard input held, at its beginning.
    """

    table: ChunkedTable
    rows: int
    open_stream: Callable[[], BinaryIO]

    def prompts(self, size: int) -> Iterator[list[str]]:
        """Read the prompts in chunks of ``size``; the last may have fewer."""
        for chunk in self.table.read(["prompt"], size):
            yield text_column(chunk, "prompt", self.table.where).rows()

    def rows_for(self, output: str, size: int) -> Iterator[pa.Table | list[str]]:
        """Read the rows in chunks of ``size``, in the form in which ``output`` is written; see :func:`prepare`."""
        if takes_json(output) and self.table.texts is not None:
            return self.table.texts(size)
        return (prepare(chunk, output) for chunk in self.table.read(None, size))

    def sha256(self) -> str:
        """SHA-256 of the file's content."""
        with self.open_stream() as stream:
            digest = hashlib.sha256()
            while block := stream.read(2**20):
                digest.update(block)
            return digest.hexdigest()


def open_prompts(
    path: str,
    *,
    input_format: str | None = None,
    output: str | None = None,
    refuse: Callable[[list[str]], None] | None = None,
    progress: bool = False,
) -> PromptTable:
    """Open a table of prompts, and read all of it once: what cannot be used is refused before any work is done.

    Args:
        path: a .parquet, .csv or .jsonl file with a column ``prompt``; ``-`` is standard input, always UTF-8.
        input_format: of :data:`INPUT_FORMATS`, whatever the file's ending; default for standard input: ``text``. Blank
            lines are passed over.
        output: path of the table that the rows will be written to; None if prompts alone are needed.
        refuse: raises RowError for prompts that cannot be used.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: as :func:`routerjax.tables.open_table`; a prompt that is no text, or a column that the output cannot
            hold; row, line or column is named.
    """
    where, open_stream = _standard_input() if path == "-" else (Path(path), functools.partial(Path(path).open, "rb"))
    if path == "-":
        input_format = input_format or "text"
    elif input_format is None:
        require_table(where)
        input_format = where.suffix.removeprefix(".")
    elif not where.is_file():
        raise InputError(f"no file {path}")
    if input_format == "text":
        table = text_chunks(open_stream, where)
    elif input_format == "jsonl":
        table = json_chunks(open_stream, where, ["prompt"] if output is None or takes_json(output) else None)
    else:
        table = table_chunks(where)
    is_copied = output is None or (takes_json(output) and table.texts is not None)
    rows = _validate(table, None if is_copied else output, refuse, progress)
    if not rows:
        raise InputError(f"{where} has no rows")
    return PromptTable(table, rows, open_stream)


def _standard_input() -> tuple[Path, Callable[[], BinaryIO]]:
    """Keep what standard input holds in a temporary file without a name, and open that as often as is needed."""
    if sys.stdin is None:
        raise InputError("standard input is closed, and - reads it: give a file")
    kept = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the table is)
    shutil.copyfileobj(sys.stdin.buffer, kept)
    kept.flush()

    def open_stream() -> BinaryIO:
        kept.seek(0)
        return os.fdopen(os.dup(kept.fileno()), "rb")

    weakref.finalize(open_stream, kept.close)
    return Path("standard input"), open_stream


def _validate(
    table: ChunkedTable, output: str | None, refuse: Callable[[list[str]], None] | None, progress: bool
) -> int:
    """Read all rows as they will be read, and convert them for ``output``, where that is given; return their number."""
    rows = missing = 0
    first_missing = -1
    require_columns(table.columns, ["prompt"], table.where)
    with tqdm.tqdm(unit="row", unit_scale=True, desc="reading", disable=not progress, delay=2) as bar:
        for chunk in table.read(["prompt"] if output is None else None, VALIDATED_ROWS):
            texts = encoded_texts(chunk, "prompt", table.where, first_row=rows)
            if texts.null_count and not missing:
                first_missing = rows + texts.is_null().index(True).as_py()
            missing += texts.null_count
            if refuse is not None and not texts.null_count:
                try:
                    refuse(text_column(chunk, "prompt", table.where).rows())
                except RowError as error:
                    raise error.at(rows + error.row) from error
            if output is not None:
                prepare(chunk, output)
            rows += chunk.num_rows
            bar.update(chunk.num_rows)
    if missing:
        raise missing_text(table.where, first_missing, "prompt", missing)
    return rows
