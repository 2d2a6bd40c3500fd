"""Tables read chunk by chunk, as often as is needed: what is held does not grow with the number of rows."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet

from routerjax.errors import InputError
from routerjax.tables.json_lines import JsonObject, json_column, json_objects, misfit, text_lines
from routerjax.tables.read import LongRowError, csv_batches, open_table

logger = logging.getLogger(__name__)

# A CSV is read in blocks of this size, and in ones larger by this factor from a row on that is longer than a block.
FIRST_BLOCK_BYTES, BLOCK_GROWTH = 2**22, 16
# Rows of JSON whose types are found together.
SCANNED_ROWS = 4096

ItemT = TypeVar("ItemT")
Read = Callable[[Sequence[str] | None, int], Iterator[pa.Table]]


@dataclass(frozen=True, eq=False)
class ChunkedTable:
    """A table that is read chunk by chunk, as often as is needed.

    Attributes:
        where: is named in errors.
        columns: names of all columns, all different.
        read: reads columns, or (None) all, in chunks of so many rows; the last may have fewer.
        texts: reads the text of each JSON object instead, in a file of these; None for others.
    """

    where: Path
    columns: list[str]
    read: Read
    texts: Callable[[int], Iterator[list[str]]] | None = None


def table_chunks(path: Path) -> ChunkedTable:
    """Read a .parquet or a .csv file in chunks; see :func:`routerjax.tables.open_table`.

    Raises:
        InputError: as :func:`routerjax.tables.open_table`.
    """
    columns = open_table(path).columns
    return ChunkedTable(path, columns, _parquet(path) if path.suffix == ".parquet" else _csv(path, columns))


def _parquet(path: Path) -> Read:
    def read(columns: Sequence[str] | None, size: int) -> Iterator[pa.Table]:
        selected = None if columns is None else list(columns)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                if selected is not None:
                    schema = pa.schema([schema.field(name) for name in selected])
                yield from _rechunked(file.iter_batches(batch_size=size, columns=selected), schema, size)
        except (pa.ArrowException, OSError) as error:  # what pyarrow raises for damaged pages
            raise InputError(f"{path} is damaged: {error}") from error

    return read


def _csv(path: Path, names: list[str]) -> Read:
    block = FIRST_BLOCK_BYTES

    def read(columns: Sequence[str] | None, size: int) -> Iterator[pa.Table]:
        nonlocal block
        done = 0
        while True:
            try:
                schema, batches = csv_batches(path, columns or names, block)
                for chunk in itertools.islice(_rechunked(batches, schema, size), done, None):
                    yield chunk
                    done += 1
                return
            except LongRowError:
                block *= BLOCK_GROWTH

    return read


def _rechunked(batches: Iterable[pa.RecordBatch], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """Tables of ``size`` rows from batches of any number; the last may have fewer."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        while sum(part.num_rows for part in pending) >= size:
            table = pa.Table.from_batches(pending, schema)
            yield table.slice(0, size)
            pending = table.slice(size).to_batches()
    if sum(part.num_rows for part in pending):
        yield pa.Table.from_batches(pending, schema)


def text_chunks(open_stream: Callable[[], BinaryIO], where: Path) -> ChunkedTable:
    """Read lines of text in chunks, as a column ``prompt``; blank ones are passed over.

    Raises:
        InputError: there is none but blank ones, or the first is not in UTF-8.
    """

    def read(columns: Sequence[str] | None, size: int) -> Iterator[pa.Table]:
        del columns
        with open_stream() as stream:
            for texts in _grouped((text for _, text in text_lines(stream, where) if text.strip()), size):
                yield pa.table({"prompt": pa.array(texts, pa.string())})

    first = next(read(None, 1), None)
    if first is None:
        raise InputError(f"{where} is empty: expected one prompt a line")
    if first.column("prompt")[0].as_py().lstrip().startswith("{"):
        logger.warning("%s begins with {: each line is a prompt; --input-format jsonl reads JSON objects", where)
    return ChunkedTable(where, ["prompt"], read)


def json_chunks(open_stream: Callable[[], BinaryIO], where: Path, typed: Sequence[str] | None) -> ChunkedTable:
    """Read JSON objects, one a line, in chunks; see :func:`routerjax.tables.open_table`.

    Args:
        open_stream: opens the file, each time at its beginning.
        where: is named in errors.
        typed: columns that will be read, or (None) all: their types, which must be those of the whole column in every
            chunk, are found here.

    Raises:
        InputError: as :func:`routerjax.tables.open_table`.
    """
    names: dict[str, None] = {}
    kinds: dict[str, pa.DataType] = {}
    first: dict[str, object] = {}

    def objects(size: int) -> Iterator[tuple[int, list[JsonObject]]]:
        with open_stream() as stream:
            row = 0
            for group in _grouped(json_objects(stream, where), size):
                yield row, group
                row += len(group)

    for start, group in objects(SCANNED_ROWS):
        names.update(dict.fromkeys(name for each in group for name in each.row))
        for name in names if typed is None else [name for name in typed if name in names]:
            values = [each.row.get(name) for each in group]
            kind = json_column(values, name, where, first=first.get(name), first_row=start).type
            try:
                kinds[name] = _common_type(kinds.get(name, pa.null()), kind)
            except (pa.ArrowException, TypeError) as error:
                raise misfit(values, name, where, error, first=first.get(name), first_row=start) from error
            if first.get(name) is None:
                first[name] = next((value for value in values if value is not None), None)

    if not names and not any(True for _ in objects(1)):
        raise InputError(f"{where} has no rows")

    def read(columns: Sequence[str] | None, size: int) -> Iterator[pa.Table]:
        for start, group in objects(size):
            values = {name: [each.row.get(name) for each in group] for name in columns or names}
            yield pa.table(
                {
                    name: json_column(column, name, where, kind=kinds[name], first=first[name], first_row=start)
                    for name, column in values.items()
                }
            )

    def texts(size: int) -> Iterator[list[str]]:
        return ([each.text for each in group] for _, group in objects(size))

    return ChunkedTable(where, list(names), read, texts)


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that Arrow finds for a column of which one part has one type, and a later part the other."""
    return one if one == other else pa.array([_sample(one), _sample(other)]).type


def _sample(kind: pa.DataType) -> object:
    """A JSON value for which Arrow finds this type."""
    if pa.types.is_list(kind):
        return [_sample(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _sample(field.type) for field in kind}
    return {pa.null(): None, pa.bool_(): True, pa.int64(): 1, pa.float64(): 0.5, pa.string(): ""}[kind]


def _grouped(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
