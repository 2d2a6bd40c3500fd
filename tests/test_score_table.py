"""Scoring a table chunk by chunk: whole or not at all, and after a kill as without one."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax import save_router
from routerjax.cli import main
from routerjax.errors import InputError
from routerjax.pipeline import score_chunks, score_table
from routerjax.policies import CostAware
from routerjax.router import load_router
from routerjax.tables import open_prompts, read_table, write_table
from tests.routers import tiny_router

ROWS = 11
PROMPTS = [f"prove that {row % 7} primes" + " please" * (row % 3) for row in range(ROWS)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a router, prompts in every format, and a cache of its own; tables are scored 4 rows at a time."""
    monkeypatch.setattr("routerjax.pipeline.score.CHUNK_ROWS", 4)
    monkeypatch.setenv("ROUTERJAX_CACHE", str(tmp_path / "cache"))
    save_router(tiny_router(tmp_path, threshold=0.5), tmp_path / "router")
    rows = {"id": [f"{row:03}" for row in range(ROWS)], "prompt": PROMPTS}
    for ending in ("csv", "jsonl", "parquet"):
        write_table(pa.table(rows), str(tmp_path / f"in.{ending}"))
    return tmp_path


def command(folder: Path, source: str = "in.csv", output: str = "out.csv", *options: str) -> list[str]:
    return [
        "score",
        str(folder / "router"),
        "--input",
        str(folder / source),
        "--output",
        str(folder / output),
        *options,
    ]


class KilledError(BaseException):
    """Stands for the end of the process."""


def killed_after(monkeypatch: pytest.MonkeyPatch, chunks: int, run: Callable[[], object]) -> None:
    """Run until so many chunks are kept, and then end without any cleaning up."""
    from routerjax.pipeline.score_part import ScorePart

    append = ScorePart.append

    def die_after(part: ScorePart, results: np.ndarray) -> None:
        if part.chunks == chunks:
            part._stream.write(b"half of the next chunk")
            part._stream.flush()
            raise KilledError
        append(part, results)

    with monkeypatch.context() as patch, contextlib.suppress(KilledError):
        patch.setattr(ScorePart, "append", die_after)
        run()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_resumed_run_ends_as_one_that_was_never_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    score = command(folder, f"in.{ending}", f"out.{ending}")
    assert main(score) == 0
    whole = (folder / f"out.{ending}").read_bytes()
    for chunks in (1, 2):
        (folder / f"out.{ending}").unlink()
        shutil.rmtree(folder / "cache")
        killed_after(monkeypatch, chunks, lambda: main(score))
        assert not (folder / f"out.{ending}").exists()
        assert main([*score, "--resume"]) == 0
        assert f"out.{ending}.part: {4 * chunks} of {ROWS} rows are scored already" in caplog.text
        assert (folder / f"out.{ending}").read_bytes() == whole
    assert sorted(path.name for path in folder.glob("out*")) == [f"out.{ending}"]
    table = read_table(folder / f"out.{ending}")
    assert table.column_names == ["id", "prompt", "win_prob", "model"]
    assert table.column("prompt").to_pylist() == PROMPTS
    together = load_router(folder / "router").win_prob(PROMPTS)
    np.testing.assert_allclose(table.column("win_prob").cast(pa.float64()).to_numpy(), together, rtol=1e-5)


def test_what_a_kill_leaves_is_refused_or_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str, *options: str, **changes: str) -> None:
        assert main([*command(folder, **changes), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert re.search(message, line), line

    refused(r"nothing to resume: there is no .*out\.csv\.part; run without --resume", "--resume")
    assert main(["score", str(folder / "router"), "--input", str(folder / "in.csv"), "--resume"]) == 2
    assert "--resume is of an output that is a file: give --output" in capsys.readouterr().err
    killed_after(monkeypatch, 1, lambda: main(command(folder)))
    capsys.readouterr()
    refused(r"out\.csv\.part holds the results of an unfinished run: go on with --resume, or remove it")
    refused("another run, which differs in policy: resume it as it was, or remove it", "--resume", "--threshold", "0.1")
    refused("differs in policy", "--resume", "--weak", "medium")
    refused("differs in input, input format", "--resume", "--input-format", "jsonl", source="in.jsonl")
    (folder / "in.csv").write_text((folder / "in.csv").read_text().replace("010", "011"))
    refused("differs in input:", "--resume")
    for damaged in (b"{", b"[" * 100_000):
        (folder / "out.csv.part").write_bytes(damaged)
        refused(r"out\.csv\.part is damaged: remove it, and run without --resume", "--resume")
    (folder / "out.csv.part").unlink()
    assert main(command(folder)) == 0


def test_damage_to_what_was_kept_is_scored_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(command(folder)) == 0
    whole = (folder / "out.csv").read_bytes()
    (folder / "out.csv").unlink()
    killed_after(monkeypatch, 2, lambda: main(command(folder)))
    part = folder / "out.csv.part"
    content = bytearray(part.read_bytes())
    content[content.index(b"\n") + 3] ^= 1
    part.write_bytes(content)
    dropped = len(content) - content.index(b"\n") - 1
    assert main([*command(folder), "--resume"]) == 0
    assert f"out.csv.part: the last {dropped} bytes are not those of whole chunks" in caplog.text
    assert (folder / "out.csv").read_bytes() == whole


def test_two_processes_do_not_write_one_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from routerjax.pipeline.score_part import open_part

    options = {"rows": ROWS, "chunk_rows": 4, "dtype": np.float32}
    with open_part(folder / "out.csv.part", {}, resume=False, **options) as part:
        part.append(np.zeros(4, np.float32))
        assert main([*command(folder), "--resume"]) == 2
        assert "out.csv.part is in use: another process scores into it" in capsys.readouterr().err


def test_a_failure_keeps_what_is_scored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from routerjax.features import SentenceFeaturizer

    encode, answers = SentenceFeaturizer.encode, []

    def answer(featurizer: SentenceFeaturizer, prompts: list[str], **options: object) -> np.ndarray:
        if not answers.pop(0):
            raise OSError("no answer")
        return encode(featurizer, prompts, **options)

    monkeypatch.setattr(SentenceFeaturizer, "encode", answer)
    for script, kept in (([False], []), ([True, False], ["out.csv.part"])):
        answers[:] = script
        assert main(command(folder)) == 1
        assert [path.name for path in folder.glob("out*")] == kept
    answers[:] = [True] * 2
    assert main([*command(folder), "--resume"]) == 0


def test_rows_in_errors_are_those_of_the_table(folder: Path) -> None:
    router = tiny_router(folder)
    broken = PROMPTS[9]

    def win_prob(prompts: list[str], **options: object) -> np.ndarray:
        from routerjax.router.outputs import checked_probability

        answers = np.asarray([np.nan if prompt == broken else 0.5 for prompt in prompts], np.float32)
        return checked_probability(answers, "win probability", prompts)

    table = open_prompts(str(folder / "in.csv"))
    with pytest.raises(InputError, match=r"row 9 \('prove that 2 primes'\): the router's win probability must be"):
        list(score_chunks(win_prob, table))
    (folder / "blank.csv").write_text("prompt\n" + "x\n" * 9 + '" "\nx\n')
    refuse = tiny_endpoint_prompts
    with pytest.raises(InputError, match="row 9: an endpoint cannot embed a blank prompt"):
        open_prompts(str(folder / "blank.csv"), refuse=refuse)
    assert router.win_prob(["x"]).shape == (1,)


def tiny_endpoint_prompts(prompts: list[str]) -> None:
    from routerjax.features.endpoint import require_not_blank

    require_not_blank(prompts)


def test_an_input_that_changes_meanwhile_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from routerjax.pipeline.score_part import ScorePart

    append = ScorePart.append

    def change(part: ScorePart, results: np.ndarray) -> None:
        append(part, results)
        (folder / "in.csv").write_text((folder / "in.csv").read_text().replace("010", "011"))

    monkeypatch.setattr(ScorePart, "append", change)
    with pytest.raises(InputError, match=r"in\.csv was changed while it was scored: remove .*out\.csv\.part"):
        score_table(
            load_router(folder / "router"), str(folder / "in.csv"), str(folder / "out.csv"), router_sha256="this"
        )
    assert not (folder / "out.csv").exists()


def test_a_router_without_a_pair_is_resumed_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = CostAware(cost={"big": 3.0, "medium": 2.0, "small": 1.0}, cost_weight=0.1)
    router = tiny_router(folder)
    shutil.rmtree(folder / "router")
    save_router(type(router)(**{**vars_of(router), "policy": policy}), folder / "router")
    killed_after(monkeypatch, 2, lambda: main(command(folder)))
    assert main([*command(folder), "--resume"]) == 0
    scored = read_table(folder / "out.csv")
    assert scored.column("model").to_pylist() == load_router(folder / "router").route(PROMPTS)


def vars_of(router: object) -> dict:
    return {name: getattr(router, name) for name in router.__dataclass_fields__}


def test_how_many_were_cut_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"{row % 6} " + "primes " * 100 * (row % 2)} for row in range(ROWS)]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(command(folder, "long.jsonl")) == 0
    assert [text for text in caplog.messages if "cut at" in text] == [
        "3 of 6 prompts were cut at 48 tokens: the end of them was not read"
    ]


def test_standard_input_is_scored_and_resumed(folder: Path) -> None:
    arguments = command(folder, "-")
    arguments[arguments.index(str(folder / "-"))] = "-"
    program = (
        "import sys, routerjax.cli, routerjax.pipeline.score as score; from routerjax.pipeline.score_part import "
        "ScorePart; import os, signal; score.CHUNK_ROWS = 4; append = ScorePart.append\n"
        "def die(part, results):\n"
        "    append(part, results)\n"
        "    if part.chunks == 2 and '--resume' not in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ScorePart.append = die\n"
        "sys.exit(routerjax.cli.main(sys.argv[1:]))"
    )
    text = "\n".join(PROMPTS)
    for options, status in (([], -signal.SIGKILL), (["--resume"], 0)):
        finished = subprocess.run(
            [sys.executable, "-c", program, *arguments, *options],
            input=text,
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "XLA_FLAGS": ""},
        )
        assert finished.returncode == status, finished.stderr
    scored = read_table(folder / "out.csv")
    assert scored.column("prompt").to_pylist() == PROMPTS
    expected = load_router(folder / "router").win_prob(PROMPTS)
    np.testing.assert_allclose(scored.column("win_prob").cast(pa.float64()).to_numpy(), expected, rtol=1e-5)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
# Mostly columns of one kind, whose types differ in parts.
COLUMN = st.one_of(
    st.lists(st.none() | st.integers(-3, 2**60) | st.floats(allow_nan=False), min_size=1, max_size=6),
    st.lists(st.none() | st.lists(st.none() | st.integers(0, 3) | st.just(0.5), max_size=2), min_size=1, max_size=6),
    st.lists(st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 3)), min_size=1, max_size=6),
    st.lists(VALUE, min_size=1, max_size=6),
)


@given(column=COLUMN)
def test_json_whose_types_change_late_is_a_table_as_a_whole_would_be(
    tmp_path_factory: pytest.TempPathFactory, column: list
) -> None:
    folder = tmp_path_factory.mktemp("late")
    rows = [{"prompt": "p"} if value is None else {"prompt": "p", "c": value} for value in column]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routerjax.tables.chunks.SCANNED_ROWS", 2)
        whole = table_or_error(lambda: read_table(folder / "in.jsonl"))
        chunks = table_or_error(lambda: chunks_of(folder / "in.jsonl", str(folder / "out.csv")))
    if isinstance(whole, str) and isinstance(chunks, str):  # what is within a list may be put in other words
        assert chunks.split(": ")[:2] == whole.split(": ")[:2]
    elif isinstance(chunks, str):
        assert "cannot be written" in chunks
    else:
        assert not isinstance(whole, str), whole
        assert chunks.schema == whole.schema
        assert chunks.equals(whole)


def table_or_error(read: Callable[[], pa.Table]) -> pa.Table | str:
    try:
        return read()
    except InputError as error:
        return str(error)


def chunks_of(path: Path, output: str) -> pa.Table:
    return pa.concat_tables(open_prompts(str(path), output=output).table.read(None, 2))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_chunks_of_any_size_are_the_same_rows(folder: Path, ending: str) -> None:
    table = open_prompts(str(folder / f"in.{ending}"), output=str(folder / "out.parquet"))
    assert table.rows == ROWS
    whole = pa.concat_tables(table.table.read(None, 100))
    for size in (1, 3, ROWS):
        chunks = list(table.table.read(None, size))
        assert [chunk.num_rows for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
        assert pa.concat_tables(chunks).equals(whole)


def test_missing_prompts_are_counted_over_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routerjax.tables.prompts.VALIDATED_ROWS", 2)
    rows = ["a", "b", "c", None, "d", None, "e"]
    pyarrow.parquet.write_table(pa.table({"prompt": rows}), tmp_path / "in.parquet", row_group_size=3)
    with pytest.raises(InputError, match=r"row 3: column prompt must be text, got nothing \(2 such rows\)"):
        open_prompts(str(tmp_path / "in.parquet"))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"prompt": "{row}"}}\n' for row in range(5)) + '{"prompt": 3}\n')
    monkeypatch.setattr("routerjax.tables.chunks.SCANNED_ROWS", 2)
    with pytest.raises(InputError, match="row 5: column prompt mixes kinds of values: 3 after '0'"):
        open_prompts(str(tmp_path / "in.jsonl"))


def test_a_csv_row_longer_than_a_block_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routerjax.tables.chunks.FIRST_BLOCK_BYTES", 64)
    prompts = [*(f"prompt {row}" for row in range(50)), "long " * 200, "last"]
    (tmp_path / "in.csv").write_text("\n".join(["prompt", *prompts]))
    assert [prompt for chunk in open_prompts(str(tmp_path / "in.csv")).prompts(4) for prompt in chunk] == prompts
