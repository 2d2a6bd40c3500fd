"""Reading tables from files, by their ending: .parquet, .csv, .jsonl."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import tqdm

from routerjax.errors import InputError
from routerjax.tables.columns import require_columns
from routerjax.tables.dictionaries import joined_table
from routerjax.tables.json_lines import JsonObject, json_column, json_objects, not_utf8

ENDINGS = (".parquet", ".csv", ".jsonl")

CSV_BLOCK_BYTES = 2**28
"""A CSV is read in blocks of this size, and no row of it may be longer."""

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


@dataclass(frozen=True, eq=False)
class OpenTable:
    """A table file of which the columns' names are known.

    Attributes:
        columns: their names, all different.
        read_columns: reads some of them or (None) all, see :meth:`read`; the flag shows progress.
    """

    path: Path
    columns: list[str]
    read_columns: Callable[[Sequence[str] | None, bool], pa.Table]

    def read(self, columns: Sequence[str] | None = None, *, progress: bool = False) -> pa.Table:
        """Read columns, all of them by default.

        Every column of a CSV is text. Texts of a file whose columns are named come as Arrow dictionaries, which hold
        each but once, see :func:`routerjax.tables.dictionaries.joined_table`; a whole file comes in its own types.

        Args:
            columns: their names.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: columns or rows missing, or content that is damaged or of mixed kinds (the column is named).
        """
        require_columns(self.columns, columns or (), self.path)
        try:
            table = self.read_columns(columns, progress)
        except (pa.ArrowException, OSError) as error:  # what pyarrow raises for damaged pages
            raise InputError(f"{self.path} is damaged: {error}") from error
        if table.num_rows == 0:
            raise InputError(f"{self.path} has no rows")
        return table


def open_table(path: str | os.PathLike[str], *, progress: bool = False) -> OpenTable:
    """Open a table file, and say which columns it has.

    Args:
        path: a .parquet, .csv or .jsonl file.
        progress: show a progress bar, if it takes more than two seconds (a .jsonl file is read here).

    Raises:
        InputError: no such file, another ending, not that format, or two columns of one name.
    """
    path = Path(path)
    require_table(path)
    opened = {".parquet": _open_parquet, ".csv": _open_csv, ".jsonl": _open_json_lines}[path.suffix](path, progress)
    require_different(opened.columns, path)
    return opened


def require_table(path: Path) -> None:
    """Raise InputError unless there is a file that has the ending of a table."""
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a file" if path.is_dir() else f"no file {path}")
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: the name must end in {', '.join(ENDINGS)}, got {path.suffix or 'no ending'!r}")


def read_table(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, progress: bool = False
) -> pa.Table:
    """Read a table, or only some of its columns; see :func:`open_table` and :meth:`OpenTable.read`.

    Example:
        >>> read_table("no/such.parquet")
        Traceback (most recent call last):
        ...
        routerjax.errors.InputError: no file no/such.parquet
    """
    return open_table(path, progress=progress).read(columns, progress=progress)


def require_different(names: Sequence[str], where: object) -> None:
    """Raise InputError where two columns have one name."""
    again = [name for place, name in enumerate(names) if name in names[:place]]
    if again:
        raise InputError(f"{where} has two columns {again[0]!r}: rename one of them")


def _open_parquet(path: Path, progress: bool) -> OpenTable:
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for a damaged name of a column
        raise InputError(f"{path} is not a complete parquet file: {error}") from error
    texts = {field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}

    def read(columns: Sequence[str] | None, progress: bool) -> pa.Table:
        encoded = [name for name in columns or () if name in texts]
        selected = None if columns is None else list(columns)
        with pyarrow.parquet.ParquetFile(path, read_dictionary=encoded) as file:
            groups = (file.read_row_group(number, selected) for number in range(file.num_row_groups))
            parts = shown(groups, progress, file.metadata.num_rows)
            if selected is None:
                return pa.concat_tables([*parts]) if file.num_row_groups else pa.table({})
            return joined_table(parts, selected)

    return OpenTable(path, schema.names, read)


def shown(parts: Iterable[Rows], progress: bool, total: int | None) -> Iterator[Rows]:
    """Yield parts of a table; if ``progress``, with a bar, if they take more than two seconds."""
    with tqdm.tqdm(total=total, unit="row", unit_scale=True, desc="reading", disable=not progress, delay=2) as bar:
        for part in parts:
            yield part
            bar.update(part.num_rows)


def _open_csv(path: Path, progress: bool) -> OpenTable:
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = next((names for names in csv.reader(stream) if names), None)
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(path, error)) from error
    except csv.Error as error:
        raise InputError(f"{path} is not a readable csv file: {error}") from error
    if header is None:
        raise InputError(f"{path} is empty")

    def read(columns: Sequence[str] | None, progress: bool) -> pa.Table:
        schema, batches = csv_batches(path, columns or header, CSV_BLOCK_BYTES)
        parts = shown(batches, progress, None)
        return pa.Table.from_batches(parts, schema) if columns is None else joined_table(parts, columns)

    return OpenTable(path, header, read)


class LongRowError(InputError):
    """A row of a CSV is longer than the block in which it was read; a larger block may hold it."""


def csv_batches(path: Path, columns: Sequence[str], block: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Read columns of a CSV as text, in blocks of at most ``block`` bytes.

    Raises:
        LongRowError: a row is longer than the block, which is smaller than file and :data:`CSV_BLOCK_BYTES`.
        InputError: a row is longer than any block, or the file is no CSV, or not in UTF-8.
    """
    most = min(path.stat().st_size + 1, CSV_BLOCK_BYTES)
    block = min(block, most)

    @contextlib.contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise InputError(not_utf8(path, error)) from error
            if "straddling" in str(error):
                kind = LongRowError if block < most else InputError
                raise kind(f"{path} has a row of more than {block:,} bytes: is a quotation mark not closed?") from error
            raise InputError(f"{path} is not a readable csv file: {error}") from error

    def read() -> Iterator[pa.RecordBatch]:
        with named():
            yield from batches

    with named():
        batches = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=block),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            # What looks like a number may be a name: 007, 4.10. Who needs a number reads it from the text.
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.large_string()),
                strings_can_be_null=False,
            ),
        )
        return batches.schema, read()


def _open_json_lines(path: Path, progress: bool) -> OpenTable:
    """Read a file of JSON objects, one a line.

    Raises:
        InputError: see :func:`json_objects`.
    """
    size = path.stat().st_size
    with (
        path.open("rb") as stream,
        tqdm.tqdm(total=size, unit="B", unit_scale=True, desc="reading", disable=not progress, delay=2) as bar,
    ):

        def counted() -> Iterator[bytes]:
            for line in stream:
                yield line
                bar.update(len(line))

        return _json_table(list(json_objects(counted(), path)), path)


def _json_table(rows: list[JsonObject], where: Path) -> OpenTable:
    """Make a table of JSON objects; a column is a key of any of them, and a key that a row lacks is null there."""
    if not rows:
        raise InputError(f"{where} has no rows")
    names = list(dict.fromkeys(name for _, _, row in rows for name in row))

    def read(columns: Sequence[str] | None, _: bool) -> pa.Table:
        wanted = names if columns is None else columns
        return pa.table({name: json_column([row.get(name) for _, _, row in rows], name, where) for name in wanted})

    return OpenTable(where, names, read)
