"""Commands as processes: streams that are closed or lose their reader, Ctrl-C, and two of them at one folder."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from routerjax import load_router
from routerjax.cli import main

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints" / "mf-minilm"
INTERRUPTED_TWICE = """\
import sys, time
from routerjax.process import interrupts, standard_streams
with standard_streams():
    try:
        with interrupts():
            try:
                print("working", flush=True)
                time.sleep(60)
            finally:
                print("tidying", flush=True)
                time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "routerjax.cli", *map(str, arguments)]


def with_streams(redirection: str, *arguments: object) -> subprocess.CompletedProcess:
    shell = ["sh", "-c", f'exec "$0" "$@" {redirection}', *command(*arguments)]
    return subprocess.run(shell, capture_output=True, text=True, check=False, timeout=120)


def test_training_goes_on_when_nobody_reads_its_words(arena: Path, tmp_path: Path) -> None:
    train = command("train", arena / "config.py", "--set", "training.epochs=1", "--output", tmp_path / "run")
    with subprocess.Popen(train, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.close()
        process.stdout.close()
    assert process.returncode == 0
    assert load_router(tmp_path / "run" / "router").strong == "sim-large"


@pytest.mark.parametrize(("redirection", "closed"), [("<&-", "input"), (">&-", "output")])
def test_closed_streams_are_said_before_the_work(arena: Path, redirection: str, closed: str) -> None:
    finished = with_streams(redirection, "score", arena / "run", "--input", "-")
    assert finished.returncode == 2
    assert re.fullmatch(f"routerjax: error: standard {closed} is closed.*\n", finished.stderr)
    assert finished.stdout == ""


def test_a_closed_standard_error_is_no_error() -> None:
    finished = with_streams("2>&-", "train", "no_such.py", "--output", "none")
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", "")


def test_a_second_interruption_ends_the_process_in_one_line() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED_TWICE], text=True, **pipes) as process:
        for word in ("working", "tidying"):
            assert process.stdout.readline() == f"{word}\n"
            process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 130
    assert re.fullmatch(r"\nrouterjax: error: interrupted; what was written before stays valid.*\n", error)


def test_an_interrupted_command_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt")
    assert main(["train", str(tmp_path / "mine.py"), "--output", str(tmp_path / "run")]) == 130
    assert re.fullmatch(r"routerjax: error: interrupted; .*--resume\)\n", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["mine.py"]


def test_memory_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (MemoryError("10 TiB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("routerjax.demo.run_demo", refuse)
        assert main(["demo"]) == 1
        assert re.fullmatch("routerjax: error: out of memory.*\n", capsys.readouterr().err)


def test_an_error_is_one_line_of_bounded_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "battles.csv"
    table.write_text(f"prompt,{'word ' * 5000}\nhello,1\n")
    assert main(["calibrate", str(SHIPPED), "--battles", str(table), "--method", "platt"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("routerjax: error: ")
    assert "characters left out" in line
    assert len(line) < 1600
