"""Columns of a table as what they are needed for: texts, numbers, flags, rows of a matrix.

A file's types are its writer's choice: text may be plain, large, a view or a dictionary (a pandas category); a number
may be an integer, a float, a decimal or, in a CSV, a text. What cannot be read as needed is refused by row and column.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32

from routerjax.errors import InputError, nearest
from routerjax.tables.dictionaries import TEXT_DICTIONARY, is_text

# Rows of a matrix that are checked together.
ROWS_A_CHECK = 2**16

NUMBERS = {
    **dict.fromkeys(("", "NA", "N/A", "#N/A", "null", "NULL", "None"), math.nan),
    **dict.fromkeys(("true", "True", "TRUE"), 1.0),
    **dict.fromkeys(("false", "False", "FALSE"), 0.0),
}
"""Texts that stand for a number, or for a missing one (NaN), beside those that spell it."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Column of texts, each different one once.

    Attributes:
        unique: the different texts, in the order of first appearance.
        index: int32 ``[rows]``, the place of each row's text in ``unique``.
    """

    unique: list[str]
    index: Int32[np.ndarray, "rows"]

    def rows(self) -> list[str]:
        """Return the text of each row."""
        return [self.unique[place] for place in self.index.tolist()]


def require_columns(present: Iterable[str], wanted: Iterable[str], where: object) -> None:
    """Raise InputError that names each missing column, the nearest of those there, and all that are there."""
    present = list(present)
    missing = [name for name in wanted if name not in present]
    if missing:
        named = ", ".join(f"{name!r}{nearest(name, present)}" for name in missing)
        noun = "column" if len(missing) == 1 else "columns"
        raise InputError(f"{where} lacks the {noun} {named}; it has {', '.join(present) or 'none'}")


def first_appearance(
    index: Int[np.ndarray, "rows"], count: int
) -> tuple[Int[np.ndarray, "used"], Int32[np.ndarray, "rows"]]:
    """Renumber the places 0 to ``count - 1`` in the order in which they first appear in ``index``.

    Returns:
        The places that appear, in that order, and ``index`` in the new numbers.

    Example:
        >>> order, renumbered = first_appearance(np.array([2, 0, 2]), 4)
        >>> order.tolist(), renumbered.tolist()
        ([2, 0], [0, 1, 0])
    """
    rows = len(index)
    first = np.full(count, rows, np.int64)
    first[index[::-1]] = np.arange(rows - 1, -1, -1)  # of rows that share a place, the last to be written is the first
    order = np.argsort(first, kind="stable")[: np.count_nonzero(first < rows)]
    renumbered = np.empty(count, np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    return order, renumbered[index]


def text_column(table: pa.Table, name: str, where: object) -> Texts:
    """Read a column of texts, in whatever way Arrow spells text.

    Args:
        table: which has the column.
        name: of the column.
        where: the file, for errors.

    Raises:
        InputError: another type, a missing value (row named), or bytes that are not UTF-8.
    """
    encoded = encoded_texts(table, name, where)
    if encoded.null_count:
        raise missing_text(where, encoded.is_null().index(True).as_py(), name, encoded.null_count)
    index = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks] or [np.empty(0, np.int32)])
    texts = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    if len(set(texts)) < len(texts):  # a single dictionary may hold a text twice
        place: dict[str, int] = {}
        index = np.asarray([place.setdefault(text, len(place)) for text in texts])[index]
        texts = list(place)
    # A dictionary may also hold texts that no row has, and in any order.
    order, index = first_appearance(index, len(texts))
    return Texts(texts if np.array_equal(order, np.arange(len(texts))) else [texts[place] for place in order], index)


def encoded_texts(table: pa.Table, name: str, where: object, *, first_row: int = 0) -> pa.ChunkedArray:
    """Read a column of texts, of which some may be missing, as a dictionary.

    Args:
        table: which has the column.
        name: of the column.
        where: the file, for errors.
        first_row: the number of the table's first row in the file.

    Raises:
        InputError: another type (row named), or bytes that are not UTF-8.
    """
    column = table.column(name)
    _require_text_type(column, name, where, first_row)
    chunks = [_encoded(chunk, name, where) for chunk in column.chunks]
    return pa.chunked_array(chunks, TEXT_DICTIONARY).unify_dictionaries()


def missing_text(where: object, row: int, name: str, count: int) -> InputError:
    """Error where ``count`` rows lack a text, the first of them at ``row``."""
    return InputError(f"{where}: row {row}: column {name} must be text, got nothing ({count} such rows)")


def label_column(table: pa.Table, name: str, where: object, *, required: bool = True) -> Texts:
    """Read a column of labels: texts, or whole numbers and booleans as the texts that they are written as.

    Args:
        table: which has the column.
        name: of the column.
        where: the file, for errors.
        required: refuse a missing label, also an empty one; else it becomes ``"None"``.

    Raises:
        InputError: another type, or a missing label (row named).
    """
    column = _plain(table.column(name))
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        column = column.cast(pa.large_string())
    if not required and is_text(column.type):
        column = column.fill_null("None")
    labels = text_column(pa.table({name: column}), name, where)
    if required and "" in labels.unique:
        row = np.flatnonzero(labels.index == labels.unique.index(""))[0]
        raise InputError(f"{where}: row {row}: column {name} must be given, got nothing")
    return labels


def _require_text_type(column: pa.ChunkedArray, name: str, where: object, first_row: int) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind) and column.null_count < len(column):
        row = column.is_valid().index(True).as_py()
        shown = _shown(column[row])
        raise InputError(f"{where}: row {first_row + row}: column {name} must be text, got {shown}")


def _encoded(chunk: pa.Array, name: str, where: object) -> pa.DictionaryArray:
    """The chunk as a dictionary of large text, whose values are not null."""
    if pa.types.is_dictionary(chunk.type) and (chunk.dictionary.null_count or not is_text(chunk.type.value_type)):
        chunk = chunk.dictionary_decode()
    if pa.types.is_dictionary(chunk.type):
        encoded = chunk
    else:  # what is no text here has no values
        encoded = (chunk if is_text(chunk.type) else pa.nulls(len(chunk), pa.string())).dictionary_encode()
    try:
        encoded.dictionary.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(f"{where}: column {name} is not UTF-8 text: {error}") from error
    return pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), encoded.dictionary.cast(pa.large_string()))


def _shown(scalar: pa.Scalar) -> str:
    """Show a value that is no text, and its kind; a conversation is called that."""
    value = scalar.as_py()
    turns = value if isinstance(value, list) else [value]
    if turns and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns):
        return "chat messages: give the text of the user's turn alone"
    return f"{reprlib.repr(value)} ({scalar.type})"


def number_column(table: pa.Table, name: str, where: object, *, required: bool = True) -> Float64[np.ndarray, "rows"]:
    """Read a column of numbers, in whatever way they are spelled: also decimals, booleans (1, 0), and texts.

    Args:
        table: which has the column.
        name: of the column.
        where: the file, for errors.
        required: refuse a missing number; else it becomes NaN.

    Raises:
        InputError: something that is no number, or a missing one (row named).
    """
    column = _plain(table.column(name))
    if is_text(column.type):
        column = _parsed(column, name, where)
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        row = column.is_valid().index(True).as_py()
        shown = reprlib.repr(column[row].as_py()) if row >= 0 else "nothing"
        raise InputError(f"{where}: row {max(row, 0)}: column {name} must be a number, got {shown} ({kind})")
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if required and np.isnan(values).any():
        missing = np.flatnonzero(np.isnan(values))
        raise InputError(
            f"{where}: row {missing[0]}: column {name} must be a number, got nothing or NaN ({missing.size} such rows)"
        )
    return values


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, its texts (also of a dictionary or a view) plain."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        kind = pa.large_string()
    if kind != column.type:
        column = column.cast(kind)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)


def _parsed(column: pa.Array, name: str, where: object) -> pa.Array:
    """The numbers that a column of texts spells; NaN where there is none."""
    texts = text_column(pa.table({name: column.fill_null("")}), name, where)
    numbers = np.empty(len(texts.unique))
    for place, text in enumerate(texts.unique):
        spelled = text.strip()
        try:
            numbers[place] = NUMBERS[spelled] if spelled in NUMBERS else float(spelled.replace("_", "no digit"))
        except ValueError:
            row = np.flatnonzero(texts.index == place)[0]
            shown = reprlib.repr(text)
            raise InputError(f"{where}: row {row}: column {name} must be a number, got {shown}") from None
    return pa.array(numbers[texts.index])


def flag_column(table: pa.Table, name: str, where: object, *, required: bool = True) -> Bool[np.ndarray, "rows"]:
    """Read a column of true and false, also spelled 1 and 0, or as text.

    Args:
        table: which has the column.
        name: of the column.
        where: the file, for errors.
        required: refuse a missing value; else it counts as false.

    Raises:
        InputError: something else, or a missing value (row named).
    """
    try:
        values = number_column(table, name, where, required=False)
    except InputError as error:
        raise InputError(str(error).replace("must be a number", "must be true or false")) from error
    bad = np.flatnonzero(~(np.isin(values, (0, 1)) | (np.isnan(values) & (not required))))
    if bad.size:
        shown = "nothing" if np.isnan(values[bad[0]]) else values[bad[0]]
        raise InputError(
            f"{where}: row {bad[0]}: column {name} must be true or false, got {shown} ({bad.size} such rows)"
        )
    return values == 1


def matrix_column(table: pa.Table, name: str) -> Float32[np.ndarray, "rows width"]:
    """Read a column of lists of numbers, all of one length, as a matrix; a missing number becomes NaN.

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
    values = column.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)):
        raise InputError(f"column {name} must hold numbers, got {column.type}")
    return values.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False).reshape(len(column), -1)


def rows_not_finite(matrix: Float[np.ndarray, "rows width"]) -> Int[np.ndarray, "bad"]:
    """Rows that are not finite in float32, which are looked for part by part: the matrix may be mapped from a file."""
    bad = [np.zeros(0, int)]
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
        for start in range(0, len(matrix), ROWS_A_CHECK):
            part = matrix[start : start + ROWS_A_CHECK].astype(np.float32, copy=False)
            bad.append(start + np.flatnonzero(~np.isfinite(part).all(axis=1)))
    return np.concatenate(bad)
