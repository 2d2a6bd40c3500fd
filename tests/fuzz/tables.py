"""Hypothesis strategies of tables as users' files have them: nearly right, wrong in one place, or not tables at all."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

Row = dict[str, object]

# Text that has broken programs: empty, blank, control and bidirectional characters, half an emoji, markup, numbers.
NASTY_TEXTS = (
    "",
    " ",
    "\x00",
    "a\x1b[31mred",
    "\u202eabc",
    "line\nbreak",
    "\r",
    "a|b",
    "<script>alert(1)</script>",
    "half \ud83d",
    "\ufeffbom",
    "{",
    '{"prompt": "x"}',
    "[]",
    "null",
    "NaN",
    "1e999",
    "007",
    "4.10",
    "-",
    "../../etc/passwd",
    "=1+1",
    '"',
    "'",
    ",",
    "x" * 5000,
    "word " * 400,
    "\u0301" * 50,
    "日本語のテキスト",
)
NASTY_NUMBERS = (0, 1, -1, 2**31, 2**63, 10**20, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), -0.0, 5e-324)
NASTY_VALUES = (
    None,
    True,
    [],
    {},
    [1, "a"],
    {"a": {"b": [None]}},
    [{"role": "user", "content": "hi"}],
    *NASTY_NUMBERS,
)
ARROW_VALUES: Mapping[str, tuple[pa.DataType, object]] = {
    "large_string": (pa.large_string(), "text"),
    "view": (pa.string_view(), "text"),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "text"),
    "binary": (pa.binary(), b"\xff\x00"),
    "timestamp": (pa.timestamp("us", "UTC"), datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)),
    "date": (pa.date32(), datetime.date(2024, 5, 1)),
    "time": (pa.time64("us"), datetime.time(12, 30)),
    "duration": (pa.duration("s"), datetime.timedelta(seconds=5)),
    "decimal": (pa.decimal128(20, 2), decimal.Decimal("1.50")),
    "float16": (pa.float16(), 0.5),
    "uint64": (pa.uint64(), 2**64 - 1),
    "list": (pa.list_(pa.int32()), [1, None]),
    "empty_struct": (pa.struct([]), {}),
    "struct": (pa.struct([("a", pa.int8())]), {"a": 1}),
    "map": (pa.map_(pa.string(), pa.int8()), [("k", 1)]),
    "null": (pa.null(), None),
    "bool": (pa.bool_(), True),
    "nan": (pa.float64(), float("nan")),
}

texts = st.one_of(st.sampled_from(NASTY_TEXTS), st.text(max_size=40))
values = st.one_of(texts, st.sampled_from(NASTY_VALUES), st.integers(), st.floats())
names = st.one_of(
    st.sampled_from(["prompt", "win_prob", "model", "id", "weight", "winner", "model_a", "extra", "Prompt", ""]), texts
)


def write(data: st.DataObject, rows: Sequence[Row], folder: Path, stem: str) -> Path:
    """Write rows in one of the formats, often with something wrong in the values, the columns or the bytes."""
    rows = [dict(row) for row in rows]
    for _ in range(data.draw(st.integers(0, 3), label="changes")):
        _change(data, rows)
    ending = data.draw(st.sampled_from(["csv", "jsonl", "parquet"]), label="format")
    path = folder / f"{stem}.{ending}"
    content = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[ending](data, rows)
    path.write_bytes(damaged(data, content))
    return path


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """The bytes, in about half of the draws with something done to them."""
    kind = data.draw(st.sampled_from(["as is", "as is", "as is", "bom", "cut", "flip", "utf-16", "insert", "empty"]))
    place = data.draw(st.integers(0, max(len(content) - 1, 0)), label="place") if content else 0
    if kind == "bom":
        return b"\xef\xbb\xbf" + content
    if kind == "cut":
        return content[:place]
    if kind == "flip" and content:
        return content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]
    if kind == "utf-16":
        return content.decode("utf-8", "replace").encode("utf-16")
    if kind == "insert":
        return content[:place] + data.draw(st.binary(max_size=8), label="bytes") + content[place:]
    return b"" if kind == "empty" else content


def _change(data: st.DataObject, rows: list[Row]) -> None:
    kind = data.draw(st.sampled_from(["cell", "cell", "column", "drop", "rename", "remove rows", "repeat row"]))
    columns = list(rows[0]) if rows else []
    if not columns:
        return
    if kind == "cell":
        row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(columns))
        rows[row][column] = data.draw(values, label=f"{column} of row {row}")
    elif kind == "column":
        name, value = data.draw(names, label="new column"), data.draw(values, label="its value")
        for row in rows:
            row[name] = value
    elif kind == "drop":
        name = data.draw(st.sampled_from(columns), label="dropped")
        for row in rows:
            row.pop(name, None)
    elif kind == "rename":
        name, other = data.draw(st.sampled_from(columns), label="renamed"), data.draw(names, label="to")
        for row in rows:
            if name in row:
                row[other] = row.pop(name)
    elif kind == "remove rows":
        del rows[data.draw(st.integers(0, len(rows)), label="rows left") :]
    else:
        rows.append(dict(rows[data.draw(st.integers(0, len(rows) - 1))]))


def _csv(_: st.DataObject, rows: Sequence[Row]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _jsonl(data: st.DataObject, rows: Sequence[Row]) -> bytes:
    ascii_only = data.draw(st.booleans(), label="ascii")
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    if lines and data.draw(st.integers(0, 9), label="odd line") == 0:
        odd = data.draw(st.sampled_from(["", "[]", "1", "{", '{"prompt": }', "[" * 100_000, '{"a":' * 5000]))
        lines.insert(data.draw(st.integers(0, len(lines))), odd)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _parquet(data: st.DataObject, rows: Sequence[Row]) -> bytes:
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        try:
            columns[name.encode("utf-8", "replace").decode()] = pa.array(
                [cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell for cell in cells]
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # no column of a parquet file is like this
            columns[name.encode("utf-8", "replace").decode()] = pa.array([str(cell) for cell in cells])
    if rows and data.draw(st.booleans(), label="an odd type"):
        kind = data.draw(st.sampled_from(sorted(ARROW_VALUES)), label="type")
        type_, value = ARROW_VALUES[kind]
        name = data.draw(st.sampled_from([*columns, "extra"]), label="of column")
        if type_ == pa.string_view() or pa.types.is_large_string(type_) or pa.types.is_dictionary(type_):
            array = columns.get(name)
            if array is not None and pa.types.is_string(array.type):
                columns[name] = array.dictionary_encode() if pa.types.is_dictionary(type_) else array.cast(type_)
        else:
            columns[name] = pa.array([value] * len(rows), type_)
    stream = pa.BufferOutputStream()
    try:
        pyarrow.parquet.write_table(pa.table(columns), stream)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # a type that parquet has not
        return b"PAR1"
    return stream.getvalue().to_pybytes()
