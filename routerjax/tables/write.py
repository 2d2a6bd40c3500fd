"""Writing tables, whole or not at all; and what a value of Arrow's looks like as text or JSON."""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO, TypeVar, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from routerjax.atomic import atomic_file, refuse_existing, require_folder
from routerjax.display import printable_json
from routerjax.errors import InputError
from routerjax.tables.read import ENDINGS

STANDARD_OUTPUT = "-"

ColumnT = TypeVar("ColumnT")


Rows = list[str] | pa.Table
"""Rows in the form in which they are written: the text of each JSON object, or a table whose columns can be written."""
Write = Callable[[Rows, Mapping[str, pa.Array]], None]


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


def takes_json(path: str) -> bool:
    """Tell if JSON lines are written to a path."""
    return path == STANDARD_OUTPUT or Path(path).suffix == ".jsonl"


def prepare(table: pa.Table, path: str) -> Rows:
    """Bring rows into the form in which they are written, by the ending of ``path``.

    A parquet file takes Arrow's values as they are, a CSV as text (nested ones as JSON), JSON lines as JSON, in which
    what is not finite is null. Dates, times and decimals are written as Arrow writes them.

    Raises:
        InputError: a column that the format cannot hold, by its name.
    """
    if takes_json(path):
        return _json_rows(table, path)
    if Path(path).suffix == ".csv":
        return _cells(table, path)
    for name in table.column_names:
        try:
            pyarrow.parquet.write_table(table.select([name]), pa.MockOutputStream())
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(f"{path}: column {name} cannot be written to parquet: {error}") from error
    return table


@contextlib.contextmanager
def table_writer(path: str) -> Iterator[Write]:
    """Yield ``write(rows, added)``, which writes rows and the columns added to them, chunk by chunk.

    The file is there once the body is done, whole; ``-`` is standard output.

    Raises:
        InputError: as :func:`require_writable`.
    """
    require_writable(path)
    if path == STANDARD_OUTPUT:
        ascii_only = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
        yield functools.partial(_write_lines, sys.stdout, functools.partial(printable_json, ascii_only=ascii_only))
        return
    with atomic_file(Path(path)) as temporary, contextlib.ExitStack() as stack:
        if takes_json(path):
            stream = stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
            yield functools.partial(_write_lines, stream, str)
        else:
            yield _table_writer(temporary, Path(path).suffix, stack)


def _table_writer(temporary: Path, ending: str, stack: contextlib.ExitStack) -> Write:
    """Write chunks of a parquet or CSV file, which is opened when the columns are known."""
    make = pyarrow.parquet.ParquetWriter if ending == ".parquet" else pyarrow.csv.CSVWriter
    writer: pyarrow.parquet.ParquetWriter | pyarrow.csv.CSVWriter | None = None

    def write(rows: Rows, added: Mapping[str, pa.Array]) -> None:
        nonlocal writer
        table = cast(pa.Table, rows)
        for name, column in added.items():
            table = table.append_column(name, column)
        if writer is None:
            writer = stack.enter_context(make(temporary, table.schema))
        writer.write_table(table)

    return write


def _write_lines(stream: TextIO, shown: Callable[[str], str], rows: Rows, added: Mapping[str, pa.Array]) -> None:
    columns = [[f"{json.dumps(name)}: {text}" for text in json_texts(column)] for name, column in added.items()]
    for row, text in enumerate(cast("list[str]", rows)):
        first_members = text[1:-1].strip()
        members = ", ".join([*([first_members] if first_members else []), *(column[row] for column in columns)])
        stream.write(shown(f"{{{members}}}") + "\n")


def write_table(table: pa.Table, path: str) -> None:
    """Write a table by the ending of ``path``, whole or not at all; ``-`` prints JSON lines.

    Raises:
        InputError: as :func:`require_writable` and :func:`prepare`.
    """
    require_writable(path)
    rows = prepare(table, path)
    with table_writer(path) as write:
        write(rows, {})


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
