"""Writing tables, whole or not at all; and what a value of Arrow's looks like as text or JSON."""

from __future__ import annotations

import codecs
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from routerjax.atomic import atomic_file, refuse_existing, require_folder
from routerjax.display import printable_json
from routerjax.errors import InputError
from routerjax.tables.read import ENDINGS, OpenTable

STANDARD_OUTPUT = "-"

ColumnT = TypeVar("ColumnT")


@dataclass(frozen=True, eq=False)
class PreparedOutput:
    """Rows in the form in which they are written, before the columns are known that are added to them.

    Attributes:
        path: of the file; ``-`` is standard output.
        rows: for JSON lines the text of each object; else a table of which every column can be written.
    """

    path: str
    rows: list[str] | pa.Table

    def write(self, added: Mapping[str, pa.Array] | None = None) -> None:
        """Write the rows with the columns ``added`` to them, in that order."""
        added = added or {}
        if isinstance(self.rows, pa.Table):
            table: pa.Table = self.rows
            for name, column in added.items():
                table = table.append_column(name, column)
            writer = pyarrow.parquet.write_table if Path(self.path).suffix == ".parquet" else pyarrow.csv.write_csv
            with atomic_file(Path(self.path)) as temporary:
                writer(table, temporary)
        elif self.path == STANDARD_OUTPUT:
            ascii_only = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
            self._write_lines(sys.stdout, added, functools.partial(printable_json, ascii_only=ascii_only))
        else:
            with (
                atomic_file(Path(self.path)) as temporary,
                temporary.open("w", encoding="utf-8", newline="\n") as stream,
            ):
                self._write_lines(stream, added, str)

    def _write_lines(self, stream: TextIO, added: Mapping[str, pa.Array], shown: Callable[[str], str]) -> None:
        columns = [[f"{json.dumps(name)}: {text}" for text in json_texts(column)] for name, column in added.items()]
        for row, text in enumerate(self.rows):
            first_members = text[1:-1].strip()
            members = ", ".join([*([first_members] if first_members else []), *(column[row] for column in columns)])
            stream.write(shown(f"{{{members}}}") + "\n")


def require_writable(path: str) -> None:
    """Refuse a path that no table can be written to, before the work is done whose result goes there.

    Raises:
        InputError: another ending, no such folder, or the file exists: nothing is overwritten.
    """
    if path == STANDARD_OUTPUT:
        return
    if Path(path).suffix not in ENDINGS:
        raise InputError(f"{path}: the name must end in {', '.join(ENDINGS)}, got {Path(path).suffix or 'no ending'!r}")
    refuse_existing(Path(path))
    require_folder(Path(path))


def prepare(table: pa.Table | OpenTable, path: str) -> PreparedOutput:
    """Bring a table into the form in which it is written, by the ending of ``path``.

    A parquet file takes Arrow's values as they are, a CSV as text (nested ones as JSON), JSON lines as JSON, in which
    what is not finite is null. Dates, times and decimals are written as Arrow writes them. A table of JSON lines keeps
    the text of its rows in JSON lines.

    Raises:
        InputError: as :func:`require_writable`, or a column that the format cannot hold, by its name.
    """
    require_writable(path)
    if path == STANDARD_OUTPUT or Path(path).suffix == ".jsonl":
        if isinstance(table, OpenTable) and table.rows is not None:
            return PreparedOutput(path, [text for _, text, _ in table.rows])
        return PreparedOutput(path, _json_rows(_arrow(table), path))
    if Path(path).suffix == ".csv":
        return PreparedOutput(path, _cells(_arrow(table), path))
    arrow = _arrow(table)
    for name in arrow.column_names:
        try:
            pyarrow.parquet.write_table(arrow.select([name]), pa.MockOutputStream())
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(f"{path}: column {name} cannot be written to parquet: {error}") from error
    return PreparedOutput(path, arrow)


def write_table(table: pa.Table, path: str) -> None:
    """Write a table by the ending of ``path``, whole or not at all; ``-`` prints JSON lines.

    Raises:
        InputError: as :func:`prepare`.
    """
    prepare(table, path).write()


def _arrow(table: pa.Table | OpenTable) -> pa.Table:
    return table.read() if isinstance(table, OpenTable) else table


def _json_rows(table: pa.Table, path: str) -> list[str]:
    keys = [json.dumps(name, ensure_ascii=False) for name in table.column_names]
    columns = [_converted(table, name, path, json_texts) for name in table.column_names]
    return [
        "{" + ", ".join(f"{key}: {text}" for key, text in zip(keys, row, strict=True)) + "}"
        for row in zip(*columns, strict=True)
    ]


def _cells(table: pa.Table, path: str) -> pa.Table:
    def cells(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
        if not pa.types.is_nested(column.type):
            return _plain(column)
        return pa.array([None if text == "null" else text for text in json_texts(column)], pa.large_string())

    return pa.table({name: _converted(table, name, path, cells) for name in table.column_names})


def _converted(table: pa.Table, name: str, path: str, convert: Callable[[pa.ChunkedArray], ColumnT]) -> ColumnT:
    """Convert a column, or raise an error that names it."""
    try:
        return convert(table.column(name))
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        kind = table.schema.field(name).type
        raise InputError(f"{path}: column {name} ({kind}) cannot be written as text: {error}") from error


def json_texts(column: pa.ChunkedArray | pa.Array) -> list[str]:
    """Write each value as JSON."""
    values = _plain(column).to_pylist()
    finite = [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]
    return [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in finite]


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The column as numbers, booleans, texts, or lists and structs of them, which are left as they are."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(column.cast(kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_float32(kind):
        # By way of the shortest text that reads back as the same number: 0.1 is not to become 0.10000000149011612.
        return column.cast(pa.string()).cast(pa.float64())
    if pa.types.is_duration(kind):
        raise ValueError("its unit would be lost: write it to .parquet")
    is_number = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_float64(kind)
    is_plain = is_number or pa.types.is_nested(kind) or pa.types.is_null(kind) or pa.types.is_large_string(kind)
    return column if is_plain else column.cast(pa.string())
