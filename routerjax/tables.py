"""Tables in files, by their ending: .parquet, .csv, .jsonl; ``-`` is standard input or output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float32

from routerjax.atomic import atomic_file, refuse_existing, require_folder
from routerjax.errors import InputError, nearest
from routerjax.prompts import valid_text

ENDINGS = (".parquet", ".csv", ".jsonl")


def table_columns(path: str | os.PathLike[str]) -> list[str]:
    """Names of the columns of a table file, read without its rows where the format allows."""
    path = _existing(path)
    if path.suffix == ".parquet":
        return _parquet(path).schema_arrow.names
    return _read(path, None).column_names


def read_table(path: str | os.PathLike[str], *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or only some of its columns.

    Args:
        path: a .parquet, .csv or .jsonl file.
        columns: names to read, all of which must be there; None reads everything.

    Raises:
        InputError: no such file, another ending, not that format, no rows, or columns missing.

    Example:
        >>> read_table("no/such.parquet")
        Traceback (most recent call last):
        ...
        routerjax.errors.InputError: no file no/such.parquet
    """
    path = _existing(path)
    if columns is not None:
        require_columns(table_columns(path), columns, path)
    table = _read(path, columns)
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows")
    return table


def require_columns(present: Iterable[str], wanted: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Raise InputError that names each missing column, the nearest of those there, and all that are there."""
    present = list(present)
    missing = [name for name in wanted if name not in present]
    if missing:
        said = ", ".join(f"{name!r}{nearest(name, present)}" for name in missing)
        raise InputError(f"{path} lacks the column {said}; it has {', '.join(present) or 'none'}")


def matrix_column(table: pa.Table, name: str) -> Float32[np.ndarray, "rows width"]:
    """A column of lists of numbers, all of one length, as a matrix; a missing number becomes NaN.

    Raises:
        InputError: it holds something else.
    """
    column = table.column(name).combine_chunks()
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (is_list or pa.types.is_fixed_size_list(column.type)) or column.null_count or len(column) == 0:
        raise InputError(f"column {name} must hold a list of numbers in every row, got {len(column)} of {column.type}")
    lengths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    if lengths.min() != lengths.max():
        raise InputError(f"column {name} must hold lists of one length, got {lengths.min()} to {lengths.max()}")
    try:
        return column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(len(column), -1)
    except pa.ArrowInvalid as error:
        raise InputError(f"column {name} must hold numbers: {error}") from error


def read_prompt_table(path: str) -> pa.Table:
    """Read a table that has a column ``prompt``; from standard input (``-``) one prompt, or JSON object, a line.

    Raises:
        InputError: as :func:`read_table`, or a line of standard input that is neither.
    """
    if path != "-":
        table = read_table(path)
        require_columns(table.column_names, ["prompt"], path)
    else:
        table = _prompts_from_lines(sys.stdin)
    for row, prompt in enumerate(table.column("prompt").to_pylist()):
        if not isinstance(prompt, str):
            raise InputError(f"{path}: row {row}: column prompt must be text, got {prompt!r}")
    return table


def write_table(table: pa.Table, path: str) -> None:
    """Write a table by the ending of ``path``, whole or not at all; ``-`` prints JSON lines.

    Raises:
        InputError: as :func:`require_writable`.
    """
    require_writable(path)
    if path == "-":
        _write_json_lines(table, sys.stdout)
        return
    target = Path(path)
    with atomic_file(target) as temporary:
        if target.suffix == ".parquet":
            pyarrow.parquet.write_table(table, temporary)
        elif target.suffix == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            with temporary.open("w", encoding="utf-8") as stream:
                _write_json_lines(table, stream)


def require_writable(path: str) -> None:
    """Refuse what :func:`write_table` would refuse, before the work is done whose result goes there.

    Raises:
        InputError: another ending, no such folder, or the file exists: nothing is overwritten.
    """
    if path != "-":
        _check_ending(Path(path))
        refuse_existing(Path(path))
        require_folder(Path(path))


def _check_ending(path: Path) -> None:
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: the name must end in {', '.join(ENDINGS)}, got {path.suffix or 'no ending'!r}")


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    _check_ending(path)
    return path


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a complete parquet file: {error}") from error


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    if path.suffix == ".parquet":
        return _parquet(path).read(columns=None if columns is None else list(columns))
    if path.suffix == ".csv":
        return _read_csv(path, columns)
    with path.open(encoding="utf-8") as stream:
        lines = _lines(stream, str(path))
    rows = [_json_object(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path} has no rows")
    return _from_rows(rows, columns, str(path))


def _read_csv(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            path,
            # One block holds a prompt of any length, quoted line ends included.
            read_options=pyarrow.csv.ReadOptions(block_size=max(1 << 20, path.stat().st_size + 1)),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=None if columns is None else list(columns),
                # A prompt that reads "1" or "nan" is text all the same.
                column_types={"prompt": pa.string(), "model_a": pa.string(), "model_b": pa.string()},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if path.stat().st_size == 0 or "Empty CSV" in str(error):
            raise InputError(f"{path} is empty") from error
        raise InputError(f"{path} is not a readable csv file: {error}") from error


def _lines(stream: TextIO, where: str) -> list[str]:
    try:
        return list(stream)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {error}; convert it first") from error


def _json_object(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a JSON object, got {type(row).__name__}")
    return row


def _prompts_from_lines(stream: TextIO) -> pa.Table:
    lines = [line.rstrip("\n") for line in _lines(stream, "standard input") if line.strip()]
    if not lines:
        raise InputError("standard input is empty: expected one prompt, or JSON object with a key prompt, a line")
    if lines[0].lstrip().startswith("{"):
        rows = [_json_object(line, f"standard input: line {number}") for number, line in enumerate(lines, 1)]
        table = _from_rows(rows, None, "standard input")
        require_columns(table.column_names, ["prompt"], "standard input")
        return table
    return pa.table({"prompt": lines})


def _from_rows(rows: list[dict[str, object]], columns: Sequence[str] | None, where: str) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    try:
        return pa.table({name: [_encodable(row.get(name)) for row in rows] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{where}: a column mixes kinds of values: {error}") from error


def _encodable(value: object) -> object:
    return valid_text(value) if isinstance(value, str) else value


def _write_json_lines(table: pa.Table, stream: TextIO) -> None:
    for row in table.to_pylist():
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
