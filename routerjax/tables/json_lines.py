"""Lines of UTF-8 text, JSON objects in them, and columns of their values."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from routerjax.errors import InputError
from routerjax.prompts import valid_text

UTF8_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some programs write in front of UTF-8."""


class JsonObject(NamedTuple):
    """A line of a .jsonl file.

    Attributes:
        line: its number in the file, from 1; blank lines count.
        text: as it stands there; NaN and Infinity, which JSON does not have, as null.
        row: the object that it holds.
    """

    line: int
    text: str
    row: dict[str, object]


def json_objects(lines: Iterable[bytes] | BinaryIO, where: object) -> Iterator[JsonObject]:
    """Read JSON objects, one a line; blank lines are passed over.

    Args:
        lines: of a file that is open in binary mode; in UTF-8, a byte order mark in front is left out.
        where: is named in errors.

    Raises:
        InputError: a line that is not UTF-8, not JSON, no object, or has a key twice; the line is named.
    """
    for number, text in text_lines(lines, where):
        if not text.strip():
            continue
        no_json: list[str] = []
        try:
            row = json.loads(text, object_pairs_hook=_different_keys, parse_constant=no_json.append)
        except RecursionError as error:
            raise InputError(f"{where}: line {number} is nested too deeply") from error
        except ValueError as error:  # also an integer of thousands of digits
            raise InputError(f"{where}: line {number} is not JSON: {error}; each line must hold one object") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: line {number} must be a JSON object, got {type(row).__name__}")
        yield JsonObject(number, json.dumps(row) if no_json else text.strip(), row)


def _different_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"the key {again!r} stands there twice")
    return row


def text_lines(lines: Iterable[bytes], where: object) -> Iterator[tuple[int, str]]:
    """Number the lines of UTF-8 text from 1, without their ends and without a byte order mark.

    Raises:
        InputError: a line that is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            yield number, (line.removeprefix(UTF8_MARK) if number == 1 else line).decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(not_utf8(f"{where}: line {number}", error)) from error


def json_column(
    values: list[object],
    name: str,
    where: object,
    *,
    kind: pa.DataType | None = None,
    first: object = None,
    first_row: int = 0,
) -> pa.Array:
    """Make an Arrow column of JSON values; lone surrogates become U+FFFD.

    Args:
        values: of rows that follow one another.
        name: of the column.
        where: the file, for errors.
        kind: of the column; None for what the values need.
        first: the first value of the whole column that is not null, where ``values`` are a later part of it.
        first_row: the row of the first of the values.

    Raises:
        InputError: values of mixed kinds, or integers beyond 64 bits; names row and column.
    """
    try:
        try:
            return pa.array(values, kind)
        except UnicodeEncodeError:
            return pa.array([_valid(value) for value in values], kind)
    except (pa.ArrowException, OverflowError) as error:
        raise misfit(values, name, where, error, first=first, first_row=first_row) from error


def _valid(value: object) -> object:
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {valid_text(key): _valid(part) for key, part in value.items()}
    return [_valid(part) for part in value] if isinstance(value, list) else value


def misfit(
    values: list[object], name: str, where: object, error: Exception, *, first: object, first_row: int
) -> InputError:
    """Error that says which row is why values are no column of Arrow's; see :func:`json_column`."""

    def kind(value: object) -> str:
        return {bool: "boolean", int: "number", float: "number", str: "text", list: "list"}.get(type(value), "object")

    for row, value in enumerate(values, first_row):
        first = value if first is None else first
        if value is None:
            continue
        if kind(value) != kind(first):
            mixed = f"mixes kinds of values: {reprlib.repr(value)} after {reprlib.repr(first)}"
            return InputError(f"{where}: row {row}: column {name} {mixed}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return InputError(f"{where}: row {row}: column {name} is beyond 64 bits: {reprlib.repr(value)}")
    return InputError(f"{where}: column {name} mixes kinds of values: {error}")


def not_utf8(where: object, error: Exception) -> str:
    """Say that something is not UTF-8, and what to do."""
    return f"{where} is not UTF-8 text: unpack or convert it first ({error})"
