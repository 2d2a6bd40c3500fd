import gzip
import json
import os
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from routerjax.errors import InputError
from routerjax.tables import number_column, read_table, require_writable, text_column, write_table

ROWS = {"prompt": ["one\nline, two", "1", "nan"], "win_prob": [0.5, 0.25, 1.0]}


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_every_format_gives_back_what_was_written(tmp_path: Path, ending: str) -> None:
    path = str(tmp_path / f"scores.{ending}")
    write_table(pa.table(ROWS), path)
    table = read_table(path)
    assert table.column_names == list(ROWS)
    assert text_column(table, "prompt", path).rows() == ROWS["prompt"]
    assert number_column(read_table(path, columns=["win_prob"]), "win_prob", path).tolist() == ROWS["win_prob"]
    with pytest.raises(
        InputError, match="lacks the column 'promt' \\(did you mean 'prompt'\\?\\); it has prompt, win_prob"
    ):
        read_table(path, columns=["promt"])
    with pytest.raises(InputError, match="exists already"):
        write_table(pa.table(ROWS), path)
    assert os.listdir(tmp_path) == [f"scores.{ending}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "prompt,win_prob\n", "has no rows"),
        ("a.csv", "prompt,win_prob\nhello\n", "not a readable csv"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": ', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "must be a JSON object, got list"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}\n', "row 1: column prompt mixes kinds of values: 3 after 'x'"),
        ("a.jsonl", '{"prompt": "x", "n": 1, "n": 2}', "line 1 is not JSON: the key 'n' stands there twice"),
        ("a.jsonl", '{"prompt": "x", "n": 12345678901234567890}', "row 0: column n is beyond 64 bits"),
        ("a.jsonl", '{"prompt": ' + "[" * 100_000, "line 1 is nested too deeply"),
        ("a.jsonl", '{"prompt": "x", "n": ' + "1" * 5000 + "}", "line 1 is not JSON"),
        ("a.csv", "prompt,n,n\nx,1,2\n", "has two columns 'n'"),
        ("a.csv", 'prompt,n\n"x,1\n', "not a readable csv"),
        ("a.parquet", "PAR1 and no more", "not a complete parquet"),
        ("a.jsonl", '[\n {"prompt": "x"}\n]\n', "line 1 is not JSON: .*; each line must hold one object"),
        ("a.xlsx", "x", "must end in .parquet, .csv, .jsonl, got '.xlsx'"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / name)


def test_another_format_under_the_ending_of_a_table_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"prompt": ["x"]}), tmp_path / "a.parquet")
    packed = {"parquet": (tmp_path / "a.parquet").read_bytes(), "gzip": gzip.compress(b'{"prompt": "x"}\n' * 20)}
    for kind, content in packed.items():
        for ending in ("csv", "jsonl", "parquet"):
            path = tmp_path / f"{kind}.{ending}"
            path.write_bytes(content)
            if (kind, ending) != ("parquet", "parquet"):
                with pytest.raises(InputError, match=r"UTF-?8|not a complete parquet|not a readable csv|is not JSON"):
                    read_table(path)


def test_other_encodings_than_utf8_are_refused(tmp_path: Path) -> None:
    for ending, text in (("jsonl", '{"prompt": "naïve"}'), ("csv", "prompt\nnaïve\n")):
        (tmp_path / f"a.{ending}").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"UTF-?8"):
            read_table(tmp_path / f"a.{ending}")


def test_a_parquet_file_with_any_byte_damaged_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"prompt": ["x"]}), path)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + b"\xf8" + content[place + 1 :])
        try:
            read_table(path, columns=["prompt"])
        except InputError:
            refused += 1
    assert 0 < refused < len(content)


def test_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a complete parquet"):
        read_table(path)


def test_standard_output_is_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(pa.table(ROWS), "-")
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ROWS["prompt"]


def test_half_an_emoji_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "half \\ud83d emoji \\ud83d\\ude00"}')
    assert read_table(tmp_path / "a.jsonl").column("prompt").to_pylist() == ["half \ufffd emoji 😀"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_full_disk_leaves_no_half_table_and_no_temporary_file(tmp_path: Path, ending: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    many = pa.table({"prompt": [f"{row} {row**5}" for row in range(2000)]})
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_table(many, str(tmp_path / f"scores.{ending}"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    require_writable("-")
    require_writable(str(tmp_path / "new.csv"))
    for name, message in (
        ("new.xlsx", "must end in"),
        ("there.csv", "exists already"),
        ("no/new.csv", "the folder .*no does not exist; create it first"),
    ):
        with pytest.raises(InputError, match=message):
            require_writable(str(tmp_path / name))
