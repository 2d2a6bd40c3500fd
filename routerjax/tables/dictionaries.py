"""Tables read part by part, whose texts are held once each."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

TEXT_DICTIONARY = pa.dictionary(pa.int32(), pa.large_string())

# Dictionaries of parts are joined when they take this, and as much as all before them together.
LEAST_BYTES = 2**25


def is_text(kind: pa.DataType) -> bool:
    """If a type is one of Arrow's types of text, dictionaries apart."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def joined_table(parts: Iterable[pa.Table | pa.RecordBatch], names: Iterable[str]) -> pa.Table:
    """Join the parts of a table as they come; each column of texts becomes one dictionary, with each text once.

    What is held at a time is the result, and of the texts of the parts about as much as of the different ones.

    Args:
        parts: with these columns, whose texts may be dictionaries already.
        names: of the columns.
    """
    columns = {name: _Column() for name in names}
    for part in parts:
        for name, column in columns.items():
            added = part.column(name)  # a file may give its columns in another order
            for chunk in added.chunks if isinstance(added, pa.ChunkedArray) else [added]:
                column.add(chunk)
    return pa.table({name: column.joined() for name, column in columns.items()})


class _Column:
    """Chunks of a column, whose dictionaries are joined now and then."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._joined_bytes = self._fresh_bytes = 0

    def add(self, chunk: pa.Array) -> None:
        if is_text(chunk.type):
            chunk = chunk.dictionary_encode()
        if not (pa.types.is_dictionary(chunk.type) and is_text(chunk.type.value_type)):
            self._chunks.append(chunk)
            return
        self._chunks.append(chunk.cast(TEXT_DICTIONARY))
        self._fresh_bytes += chunk.dictionary.nbytes
        if self._fresh_bytes > max(LEAST_BYTES, self._joined_bytes):
            self._chunks = self.joined().chunks
            self._joined_bytes, self._fresh_bytes = self._chunks[0].dictionary.nbytes, 0
            pa.default_memory_pool().release_unused()

    def joined(self) -> pa.ChunkedArray:
        column = pa.chunked_array(self._chunks, None if self._chunks else pa.null())
        if column.type != TEXT_DICTIONARY or column.num_chunks < 2:
            return column
        return pa.chunked_array([pa.concat_arrays(column.unify_dictionaries().chunks)])
