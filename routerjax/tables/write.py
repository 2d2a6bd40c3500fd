"""Writing tables, whole or not at all; and what a value of Arrow's looks like as text or JSON."""

from __future__ import annotations

import base64
import codecs
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from routerjax.atomic import atomic_file, refuse_existing, require_folder
from routerjax.display import printable_json
from routerjax.errors import InputError
from routerjax.prompts import valid_text
from routerjax.tables.json_lines import JsonObject
from routerjax.tables.read import ENDINGS, OpenTable

STANDARD_OUTPUT = "-"

# Decimal digits of a second in Arrow's units.
TICKS = {"s": 0, "ms": 3, "us": 6, "ns": 9}

# Arrow ends a time with its zone as +0100, ISO 8601 beside colons as +01:00.
ZONE = re.compile(r"([+-]\d\d)(\d\d)$")

NO_FRACTION = re.compile(r"\.0+(?=$|[+Z-])")

NO_JSON_NUMBERS = ("nan", "inf", "-inf")


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

    A parquet file takes Arrow's values as they are, a CSV as text (nested ones as JSON), JSON lines as JSON: dates and
    times in ISO 8601, binary in base64, what is not finite as null. A table of JSON lines keeps the text of its rows.

    Raises:
        InputError: as :func:`require_writable`, or a column that the format cannot hold, by its name.
    """
    require_writable(path)
    if path == STANDARD_OUTPUT or Path(path).suffix == ".jsonl":
        if isinstance(table, OpenTable) and table.rows is not None:
            return PreparedOutput(path, [text for _, text, _ in table.rows])
        return PreparedOutput(path, _json_rows(_arrow(table), path))
    if Path(path).suffix == ".csv":
        if isinstance(table, OpenTable) and table.rows is not None:
            return PreparedOutput(path, _json_cells(table.columns, table.rows))
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


def _converted(table: pa.Table, name: str, path: str, convert: Callable[[pa.Array], list]) -> list:
    """Convert a column to text, or raise an error that names it."""
    try:
        return [text for chunk in table.column(name).chunks for text in convert(chunk)]
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
        kind = table.schema.field(name).type
        raise InputError(f"{path}: column {name} ({kind}) cannot be written as text: {error}") from error


def _json_rows(table: pa.Table, path: str) -> list[str]:
    keys = [json.dumps(name, ensure_ascii=False) for name in table.column_names]
    columns = [_converted(table, name, path, json_texts) for name in table.column_names]
    return [
        "{" + ", ".join(f"{key}: {text}" for key, text in zip(keys, row, strict=True)) + "}"
        for row in zip(*columns, strict=True)
    ]


def _cells(table: pa.Table, path: str) -> pa.Table:
    def column(name: str) -> pa.ChunkedArray:
        kind = table.schema.field(name).type
        is_plain = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_large_string(kind)
        if is_plain or pa.types.is_float32(kind) or pa.types.is_float64(kind) or pa.types.is_string(kind):
            return table.column(name)
        return pa.chunked_array([_converted(table, name, path, plain_texts)], pa.large_string())

    return pa.table({name: column(name) for name in table.column_names})


def _json_cells(names: list[str], rows: list[JsonObject]) -> pa.Table:
    def cell(value: object) -> str | None:
        if isinstance(value, str):
            return valid_text(value)
        return None if value is None else json.dumps(value)

    return pa.table({name: pa.array([cell(row.get(name)) for _, _, row in rows], pa.string()) for name in names})


def json_texts(array: pa.Array) -> list[str]:
    """Write each value as JSON."""
    array = _unwrapped(array)
    kind = array.type
    if _is_nested(kind):
        return _nested_texts(array)
    is_bare = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    is_floating = pa.types.is_floating(kind)

    def json_text(text: str | None) -> str:
        if text is None or (is_floating and text in NO_JSON_NUMBERS):
            return "null"
        return text if is_bare or is_floating else json.dumps(text, ensure_ascii=False)

    return [json_text(text) for text in plain_texts(array)]


def plain_texts(array: pa.Array) -> list[str | None]:
    """Write each value as a cell of a CSV, a nested one as JSON; None where there is no value."""
    array = _unwrapped(array)
    kind = array.type
    if _is_nested(kind):
        texts = _nested_texts(array)
    elif pa.types.is_floating(kind):
        # In their own precision: the shortest text that reads back as the same number.
        texts = [str(number) for number in array.fill_null(0).to_numpy(zero_copy_only=False)]
    elif pa.types.is_timestamp(kind):
        texts = [_iso_8601(text or "") for text in array.cast(pa.string()).to_pylist()]
    elif pa.types.is_date(kind) or pa.types.is_time(kind):
        texts = [NO_FRACTION.sub("", text or "") for text in array.cast(pa.string()).to_pylist()]
    elif pa.types.is_duration(kind):
        texts = [_duration(ticks or 0, TICKS[kind.unit]) for ticks in array.cast(pa.int64()).to_pylist()]
    else:
        texts = [_scalar_text(value) for value in array.to_pylist()]
    return [text if valid else None for text, valid in zip(texts, array.is_valid().to_pylist(), strict=True)]


def _unwrapped(array: pa.Array) -> pa.Array:
    """The values themselves of an extension type or a dictionary."""
    if isinstance(array, pa.ExtensionArray):
        return _unwrapped(array.storage)
    return _unwrapped(array.dictionary_decode()) if isinstance(array, pa.DictionaryArray) else array


def _is_nested(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) and not pa.types.is_union(kind)


def _nested_texts(array: pa.Array) -> list[str]:
    """Write lists as JSON lists, structs as objects, maps as lists of objects with key and value."""
    kind = array.type
    valid = array.is_valid().to_pylist()
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        if len(set(names)) < len(names):
            raise ValueError(f"it has two fields of one name among {', '.join(names)}")
        keys = [json.dumps(name, ensure_ascii=False) for name in names]
        fields = [json_texts(field) for field in array.flatten()]
        texts = [
            "{" + ", ".join(f"{key}: {field[row]}" for key, field in zip(keys, fields, strict=True)) + "}"
            for row in range(len(array))
        ]
    else:
        if pa.types.is_map(kind):
            array = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
        parts = iter(json_texts(array.flatten()))
        lengths = pc.call_function("list_value_length", [array]).fill_null(0).to_pylist()
        texts = ["[" + ", ".join(itertools.islice(parts, length)) + "]" for length in lengths]
    return [text if is_valid else "null" for text, is_valid in zip(texts, valid, strict=True)]


def _scalar_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _iso_8601(text: str) -> str:
    return NO_FRACTION.sub("", ZONE.sub(r"\1:\2", text.replace(" ", "T", 1)))


def _duration(ticks: int, digits: int) -> str:
    """Write a duration in ISO 8601, in seconds."""
    return f"{'-' if ticks < 0 else ''}PT{Decimal(abs(ticks)).scaleb(-digits):f}S"
