"""Prompts to score, with the columns beside them: from standard input and from files, and out again as they came."""

import csv
import datetime
import decimal
import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.errors import InputError
from routerjax.tables import open_prompts, read_table, table_writer, write_table


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    # A stream that would decode other bytes than UTF-8 in its own way, as under C.UTF-8.
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", stream)


def score(path: Path, output: Path, rows: int = 2) -> None:
    """Add a column to a table, chunk by chunk, as the command does."""
    table = open_prompts(str(path), output=str(output))
    with table_writer(str(output)) as write:
        for chunk in table.rows_for(str(output), rows):
            write(chunk, {"win_prob": pa.array(np.full(len(chunk), 0.5, np.float32))})


def prompts_of(path: str, input_format: str | None = None) -> list[str]:
    table = open_prompts(path, input_format=input_format)
    chunks = list(table.prompts(2))
    assert all(len(chunk) == 2 for chunk in chunks[:-1])
    prompts = [prompt for chunk in chunks for prompt in chunk]
    assert len(prompts) == table.rows
    return prompts


# Texts as they stand in files; half an emoji is replaced where text is read, and has a test of its own.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)
LOOKS_LIKE_A_NUMBER = st.sampled_from(
    ["007", "12345678901234567890", "4.10", "4.1", "70", "1e5", "nan", "NA", "true", ""]
)
PROMPTS = st.text("abc,\n\"' 1", min_size=1, max_size=6)


@given(rows=st.lists(st.tuples(PROMPTS, LOOKS_LIKE_A_NUMBER | TEXT, TEXT), min_size=1, max_size=5))
def test_a_csv_comes_out_as_it_came_in(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "in.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("prompt", "id", "more"), *rows])
    score(folder / "in.csv", folder / "out.csv")
    with (folder / "out.csv").open(newline="", encoding="utf-8") as stream:
        header, *written = csv.reader(stream)
    assert header == ["prompt", "id", "more", "win_prob"]
    assert written == [[*row, "0.5"] for row in rows]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(rows=st.lists(st.tuples(PROMPTS, st.dictionaries(st.sampled_from("xyz"), JSON)), min_size=1, max_size=4))
def test_json_lines_come_out_as_they_came_in(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    lines = [json.dumps({**more, "prompt": prompt}) for prompt, more in rows]
    (folder / "in.jsonl").write_text("\n\n".join(lines))
    score(folder / "in.jsonl", folder / "out.jsonl")
    written = (folder / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert written == [*(f'{line[:-1]}, "win_prob": 0.5}}' for line in lines), ""]


def test_json_keeps_the_spelling_of_its_numbers(tmp_path: Path) -> None:
    line = '{"b": 1.10, "a": 1E400, "n": 12345678901234567890, "prompt": "\\ud83d", "s": {"k": [1, "2"]}'
    (tmp_path / "in.jsonl").write_text(line + " }\n")
    score(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == line + ', "win_prob": 0.5}\n'
    assert prompts_of(str(tmp_path / "in.jsonl")) == ["\ufffd"]


ARROW_COLUMNS = {
    "timestamp": pa.array([datetime.datetime(2024, 5, 1, 10), None]),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns")),
    "zoned": pa.array([datetime.datetime(2024, 5, 1, 10), None], pa.timestamp("ms", "+02:00")),
    "date": pa.array([datetime.date(2024, 5, 1), None]),
    "time": pa.array([datetime.time(1, 2, 3), None]),
    "duration": pa.array([1500, None], pa.duration("ms")),
    "decimal": pa.array([decimal.Decimal("1.10"), None]),
    "binary": pa.array([b"\xff", None]),
    "list": pa.array([["x", "y\n"], None]),
    "fixed": pa.array([[1, 2], None], pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": [1, None], "b": None}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "nan": pa.array([math.nan, math.inf], pa.float32()),
    "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
    "boolean": pa.array([True, None]),
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "nothing": pa.array([None, None]),
    "large": pa.array(["007", None], pa.large_string()),
}


def arrow_table() -> pa.Table:
    return pa.table({"prompt": pa.array(["p", "q"]).dictionary_encode(), **ARROW_COLUMNS})


def test_parquet_comes_out_as_it_came_in(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(arrow_table(), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert written.column("win_prob").to_pylist() == [0.5, 0.5]
    before = pyarrow.parquet.read_table(tmp_path / "in.parquet")
    assert written.schema.names == [*before.schema.names, "win_prob"]
    for name in before.schema.names:
        column, expected = (table.column(name).combine_chunks() for table in (written, before))
        assert column.type == expected.type
        assert str(column) == str(expected)


def test_parquet_as_json_and_as_csv(tmp_path: Path) -> None:
    table = arrow_table().drop_columns(["duration", "binary"])
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    first, second = (
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").read_text().splitlines()
    )
    assert first == {
        "prompt": "p",
        "timestamp": "2024-05-01 10:00:00.000000",
        "nanoseconds": "1970-01-01 00:00:00.000000001",
        "zoned": "2024-05-01 12:00:00.000+0200",
        "date": "2024-05-01",
        "time": "01:02:03.000000",
        "decimal": "1.10",
        "list": ["x", "y\n"],
        "fixed": [1, 2],
        "struct": {"a": [1, None], "b": None},
        "map": [["k", 1]],
        "nan": None,
        "unsigned": 2**64 - 1,
        "boolean": True,
        "dictionary": "x",
        "nothing": None,
        "large": "007",
        "win_prob": 0.5,
    }
    assert {name for name, value in second.items() if value is not None} == {"prompt", "win_prob"}
    score(tmp_path / "in.parquet", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        cells = next(csv.DictReader(stream))
    assert cells["list"] == '["x", "y\\n"]'
    assert {name: cells[name] for name in ("timestamp", "large", "decimal", "nan")} == {
        "timestamp": "2024-05-01 10:00:00.000000",
        "large": "007",
        "decimal": "1.10",
        "nan": "nan",
    }


def test_json_lines_as_csv_and_as_parquet(tmp_path: Path) -> None:
    rows = '{"prompt": "a", "tags": ["x", "y"], "n": 9007199254740993}\n{"prompt": "b", "nan": NaN, "f": 0.1}'
    (tmp_path / "in.jsonl").write_text(rows)
    score(tmp_path / "in.jsonl", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["prompt", "tags", "n", "nan", "f", "win_prob"],
            ["a", '["x", "y"]', "9007199254740993", "", "", "0.5"],
            ["b", "", "", "", "0.1", "0.5"],
        ]
    score(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)["nan"] is None
    (tmp_path / "in.jsonl").write_text(rows.replace('"y"', "1"))
    for ending in ("csv", "parquet"):
        with pytest.raises(InputError, match=r"in\.jsonl: column tags mixes kinds of values"):
            open_prompts(str(tmp_path / "in.jsonl"), output=str(tmp_path / f"mixed.{ending}"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"\xff"]), r"column c \(binary\) cannot be written as text: Invalid UTF8"),
        (pa.array([1500], pa.duration("ms")), r"column c \(duration\[ms\]\) cannot be .*its unit would be lost"),
        (pa.array([[math.nan]]), r"column c \(list.* cannot be written as text: Out of range float"),
    ],
)
def test_what_has_no_text_is_refused_by_its_name(column: pa.Array, message: str) -> None:
    table = pa.table({"prompt": ["a"], "c": column})
    with pytest.raises(InputError, match=message):
        write_table(table, "-")


def test_what_a_format_cannot_hold_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "empty": {}}')
    with pytest.raises(InputError, match=r"out\.parquet: column empty cannot be written to parquet"):
        open_prompts(str(tmp_path / "in.jsonl"), output=str(tmp_path / "out.parquet"))
    kind = pa.struct([("x", pa.int64()), ("x", pa.int64())])
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], fields=list(kind))
    pair = pa.table({"prompt": ["a"], "pair": twice})
    with pytest.raises(InputError, match=r"column pair \(struct.*duplicate field names"):
        write_table(pair, "-")
    pyarrow.parquet.write_table(pa.table([["a"], ["b"], ["c"]], ["prompt", "id", "id"]), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet has two columns 'id'"):
        open_prompts(str(tmp_path / "in.parquet"))


def test_columns_that_nobody_needs_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "a", "turn": 1, "n": 10000000000000000000000}\n{"prompt": "b", "turn": "2"}'
    )
    assert prompts_of(str(tmp_path / "in.jsonl")) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "input_format", "prompts"),
    [
        (b"plain prompt\r\n\nanother\n", None, ["plain prompt", "another"]),
        (b'{"prompt": "x"}\n{y}', None, ['{"prompt": "x"}', "{y}"]),
        (b'\xef\xbb\xbf{"prompt": "Prove it."}\n\n{"prompt": "b"}', "jsonl", ["Prove it.", "b"]),
        ("\ufeffnaïve\n".encode(), None, ["naïve"]),
    ],
)
def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, content: bytes, input_format: str | None, prompts: list[str]
) -> None:
    stdin(monkeypatch, content)
    assert prompts_of("-", input_format) == prompts


def test_text_that_looks_like_json_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stdin(monkeypatch, b'{"prompt": "x"}\n')
    open_prompts("-")
    assert "standard input begins with {: each line is a prompt; --input-format jsonl" in caplog.text


@pytest.mark.parametrize(
    ("content", "input_format", "message"),
    [
        (b"", None, "standard input is empty"),
        (b"", "jsonl", "standard input has no rows"),
        (b"h\xe9\xffi", None, "standard input: line 1 is not UTF-8 text: unpack or convert it first"),
        (b'{"prompt": "a"}\n\n\n{"prompt: "b"}\n', "jsonl", "standard input: line 4 is not JSON"),
        (b'{"prompt": 3}', "jsonl", r"standard input: row 0: column prompt must be text, got 3 \(int64\)"),
        (b'{"p": "x"}', "jsonl", "standard input lacks the column 'prompt'"),
        (b"[1]", "jsonl", "standard input: line 1 must be a JSON object, got list"),
    ],
)
def test_standard_input_refusals(
    monkeypatch: pytest.MonkeyPatch, content: bytes, input_format: str | None, message: str
) -> None:
    stdin(monkeypatch, content)
    with pytest.raises(InputError, match=message):
        open_prompts("-", input_format=input_format)


def test_a_format_that_is_named_holds_whatever_the_ending(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b'\xef\xbb\xbf{"prompt": "x"}\n')
    (tmp_path / "a.txt").write_text("x\ny\n")
    assert prompts_of(str(tmp_path / "a.ndjson"), "jsonl") == ["x"]
    assert prompts_of(str(tmp_path / "a.txt"), "text") == ["x", "y"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path: Path, ending: str) -> None:
    content = {"csv": "prompt,id\nx,1\n", "jsonl": '{"prompt": "x", "id": 1}'}[ending]
    (tmp_path / f"a.{ending}").write_text(content, encoding="utf-8-sig")
    assert read_table(tmp_path / f"a.{ending}").column_names == ["prompt", "id"]
    (tmp_path / f"a.{ending}").write_text(content, encoding="utf-16")
    with pytest.raises(InputError, match="is not UTF-8 text: unpack or convert it first"):
        read_table(tmp_path / f"a.{ending}")


def test_a_csv_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routerjax.tables.read.CSV_BLOCK_BYTES", 64)
    prompts = [f"line {row}\n, and another" for row in range(50)]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["prompt"], *([prompt] for prompt in prompts)])
    assert prompts_of(str(tmp_path / "a.csv")) == prompts
    with (tmp_path / "a.csv").open("a") as stream:
        stream.write('"' + "x" * 200)
    with pytest.raises(InputError, match="a row of more than 64 bytes: is a quotation mark not closed"):
        open_prompts(str(tmp_path / "a.csv"))
