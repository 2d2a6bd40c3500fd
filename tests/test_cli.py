"""The command line from battles to a serving bundle, in process; a few true processes where only those can tell."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest

from routerjax import load_router
from routerjax.cli import main
from routerjax.tables import number_column, read_table, write_table

PROMPTS = ["what is the capital?", "prove that\nthere are, infinitely many", "1", "  你好 😀"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "routerjax.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Standard output is a block buffer, as users have it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_help_needs_no_jax() -> None:
    program = """
import contextlib, io, sys
from routerjax.cli import main
commands = ["demo", "train", "plan", "evaluate", "calibrate", "score", "export", "import"]
for arguments in [["--help"], *([name, "--help"] for name in commands)]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(arguments)
    assert said.getvalue().startswith("usage: routerjax"), arguments
print(*sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"jax", "flax", "numpy", "pyarrow", "datasets"} & set(finished.stdout.split())


def test_evaluate(arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = str(arena / "benchmark.parquet")
    pair = ["--strong", "sim-large", "--weak", "sim-small", "--samples", "50"]
    assert main(["evaluate", str(arena / "run"), "--benchmark", benchmark, *pair, "--output", str(tmp_path / "e")]) == 0
    assert sorted(os.listdir(tmp_path / "e")) == ["curves.png", "report.html", "results.json", "results.md"]
    (result,) = json.loads((tmp_path / "e" / "results.json").read_text())["benchmarks"]
    assert set(result["routers"]) == {"run", "knn", "random", "constant", "oracle"}
    assert result["num_prompts"] == 40
    table = capsys.readouterr().out
    assert all(name in table for name in result["routers"])


def test_calibrate_keeps_the_threshold(arena: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router, calibrated = load_router(arena / "run" / "router"), load_router(arena / "calibrated")
    assert router.threshold is None
    prompts = read_table(arena / "battles.parquet").column("prompt").to_pylist()
    win_prob = router.win_prob(prompts)
    share = np.mean(win_prob >= calibrated.threshold)
    assert abs(share - 0.3) < 0.05
    battles = str(arena / "battles.parquet")
    assert main(["calibrate", str(arena / "run"), "--prompts", battles, "--strong-share", "0.3"]) == 0
    printed = f"threshold {calibrated.threshold!r} sends {share:.4f} of the 320 rows to sim-large\n"
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_score_tables(arena: Path, tmp_path: Path, ending: str) -> None:
    source, target = (str(tmp_path / f"{name}.{ending}") for name in ("in", "out"))
    write_table(pa.table({"number": range(4), "prompt": PROMPTS}), source)
    assert main(["score", str(arena / "calibrated"), "--input", source, "--output", target]) == 0
    table = read_table(target)
    scored = table.to_pydict()
    router = load_router(arena / "calibrated")
    win_prob = router.win_prob(PROMPTS)
    assert list(scored) == ["number", "prompt", "win_prob", "model"]
    assert scored["prompt"] == PROMPTS
    np.testing.assert_allclose(number_column(table, "win_prob", target), win_prob, rtol=1e-6)
    assert scored["model"] == ["sim-large" if high else "sim-small" for high in win_prob >= router.threshold]


def test_score_takes_another_pair_and_threshold(
    arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(pa.table({"prompt": PROMPTS}), str(tmp_path / "in.csv"))
    score = ["score", str(arena / "calibrated"), "--input", str(tmp_path / "in.csv"), "--strong", "sim-medium"]
    for threshold, model in ((["--threshold", "0"], "sim-medium"), (["--threshold", "inf"], "sim-small"), ([], None)):
        assert main([*score, *threshold]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        # The threshold of one pair says nothing about another.
        assert [row.get("model") for row in rows] == [model] * 4
        expected = load_router(arena / "calibrated").with_pair("sim-medium").win_prob(PROMPTS)
        np.testing.assert_allclose([row["win_prob"] for row in rows], expected, rtol=1e-6)


def test_what_a_router_loses_on_the_way_is_said(
    arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(*arguments: object) -> list[str]:
        caplog.clear()
        assert main([str(argument) for argument in arguments]) == 0
        return [record.getMessage() for record in caplog.records if record.name == "routerjax.router.folder"]

    write_table(pa.table({"prompt": PROMPTS}), str(tmp_path / "in.csv"))
    score = ["score", arena / "calibrated", "--input", tmp_path / "in.csv"]
    lost = "left out: the {} of the router, chosen for sim-large or sim-small"
    assert warnings(*score) == []
    assert warnings(*score, "--strong", "sim-medium") == [lost.format("threshold")]
    assert warnings(*score, "--strong", "sim-medium", "--threshold", "0.5") == []
    by_battles = ["--battles", arena / "battles.parquet", "--method", "platt", "--output", tmp_path / "mapped"]
    before = "left out: the threshold of the router, chosen before this calibration"
    assert warnings("calibrate", arena / "calibrated", *by_battles) == [before]
    other = ["export", tmp_path / "mapped", "--format", "stablehlo", "--weak", "sim-tiny", "--output", tmp_path / "b"]
    assert warnings(*other) == [lost.format("calibration")]
    capsys.readouterr()


def test_a_share_that_is_not_attained_is_said(
    arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_table(pa.table({"prompt": ["one and the same"] * 10}), str(tmp_path / "in.csv"))
    share = ["calibrate", str(arena / "run"), "--prompts", str(tmp_path / "in.csv"), "--strong-share"]
    assert main([*share, "0.5"]) == 0
    assert "sends 0.0000 of the 10 rows" in capsys.readouterr().out
    assert "0.5 of them were wanted: the next 10 share one win probability, and go to one model together" in caplog.text
    caplog.clear()
    assert main([*share, "1"]) == 0
    assert "were wanted" not in caplog.text


def test_score_standard_input_to_standard_output(arena: Path) -> None:
    score = command("score", arena / "calibrated", "--input", "-")
    finished = subprocess.run(
        score, input="hello there\n\nin one line\n", capture_output=True, text=True, check=True, env=environment()
    )
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["hello there", "in one line"]


def test_a_reader_that_stops_is_no_error(arena: Path) -> None:
    score = command("score", arena / "calibrated", "--input", "-")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(score, text=True, env=environment(), **pipes) as process:
        process.stdout.close()
        process.stdin.write("hello there\n")
        process.stdin.close()
        printed = process.stderr.read()
    assert not re.search("error|exception|traceback", printed, re.IGNORECASE)
    assert process.returncode == 0


def test_export(
    arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["export", str(arena / "calibrated"), "--format", "stablehlo", "--output", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()[:-1]] == [
        "from_embedding",
        "from_token_ids",
        "from_text",
    ]
    # Before the warning that prompts were cut, of which the user gave none.
    golden, cut = [text for text in caplog.messages if "exporting, and" in text or "prompts were cut" in text]
    assert golden.startswith("exporting, and comparing with the router on 49 prompts of its own, a long")
    assert re.match(r"\d+ of 49 prompts were cut", cut)
    description = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert description["policy"]["threshold"] == load_router(arena / "calibrated").threshold


def test_a_run_killed_in_the_middle_resumes_bit_for_bit(
    arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        "train",
        str(arena / "config.py"),
        "--set",
        "training.epochs=20",
        "training.checkpoint_every=2",
        "--output",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    checkpoints = killed / "training" / "checkpoints"
    with subprocess.Popen(command(*train, killed), stderr=subprocess.DEVNULL) as process:
        while not (checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        for again in ([], ["--resume"]):
            assert main([*train, str(killed), *again]) == 2
            assert f"{killed} is in use: another process trains into it" in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert sorted(os.listdir(killed)) == ["run.json", "training"]
    (killed / ".router.abc.tmp").mkdir()
    (killed / "training" / ".metrics.jsonl.1.tmp").touch()
    assert main([*train, str(killed), "--resume"]) == 0
    assert main([*train, str(whole)]) == 0
    assert sorted(os.listdir(killed)) == sorted(os.listdir(whole)) == ["knn", "router", "run.json", "training"]
    assert sorted(os.listdir(killed / "training")) == sorted(os.listdir(whole / "training"))
    for name in ("router", "knn"):
        one, other = (load_router(folder / name).variables for folder in (killed, whole))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    epochs = [
        [json.loads(line)["epoch"] for line in (folder / "training" / "metrics.jsonl").read_text().splitlines()]
        for folder in (killed, whole)
    ]
    assert epochs == [list(range(1, 21))] * 2


def limited(limit: int, *arguments: object) -> subprocess.CompletedProcess:
    """Run a command that can write no file beyond ``limit`` bytes: to it, the disk is full there."""
    program = (
        "import resource, runpy, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "sys.argv[0] = 'routerjax'; runpy.run_module('routerjax.cli', run_name='__main__')"
    )
    full = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, check=False)


def test_a_full_disk_loses_nothing(arena: Path, tmp_path: Path) -> None:
    run, calibrated = tmp_path / "run", tmp_path / "calibrated"
    train = ["train", arena / "config.py", "--set", "router.attributes.model_dim=2048", "--output", run]
    # Between the size of the embedding cache's files and that of a checkpoint.
    finished = limited(150_000, *train)
    assert finished.returncode == 1
    checkpoints = run / "training" / "checkpoints"
    error = rf"routerjax: error: cannot write checkpoint \d+ in {re.escape(str(checkpoints))}: File too large\n"
    assert re.search(f"{error}$", finished.stderr)
    assert "Traceback" not in finished.stderr
    assert sorted(os.listdir(run)) == ["run.json", "training"]
    assert main([*map(str, train), "--resume"]) == 0

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    calibrate = ["calibrate", run, "--prompts", arena / "battles.parquet", "--strong-share", 0.5]
    finished = limited(50_000, *calibrate, "--output", calibrated)
    assert finished.returncode == 1
    assert finished.stderr.endswith(f"routerjax: error: [Errno 27] File too large: '{calibrated}'\n")
    assert "Traceback" not in finished.stderr
    assert finished.stdout.startswith("threshold ")
    assert os.listdir(tmp_path) == ["run"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_an_error(arena: Path) -> None:
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            command("score", arena / "calibrated", "--input", "-"),
            input="hello there\n",
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment(),
        )
    assert finished.returncode == 1
    assert finished.stderr.endswith("routerjax: error: [Errno 28] No space left on device\n")
    assert finished.stderr.count("Errno 28") == 1


def test_names_of_files_cannot_forge_what_is_shown(
    arena: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    path = tmp_path / "a\x1b[2J\u202e\nrouterjax: done.txt"
    path.write_text("{hello")
    output = tmp_path / "scored.csv"
    score = ["score", str(arena / "calibrated"), "--input", str(path)]
    assert main([*score, "--input-format", "text", "--output", str(output)]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert [line for line in shown if "begins with {" in line and r"a\x1b[2J\u202e\nrouterjax: done.txt" in line]
    assert not [line for line in shown if line.startswith("routerjax: done")]
    assert main(score) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.isprintable()


def test_json_lines_on_standard_output_move_no_cursor(
    arena: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = {"prompt": "naïve \x9b31m \u202e 😀 \U000e0001", "note": "\x7f\x1b"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert main(["score", str(arena / "calibrated"), "--input", str(tmp_path / "in.jsonl")]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert line.isprintable()
    assert "naïve" in line
    assert "😀" in line
    assert {name: json.loads(line)[name] for name in row} == row
