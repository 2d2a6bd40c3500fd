"""Run a command in this process and hold it to what every command promises, whatever it is given."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import resource
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from routerjax.cli import main
from tests.bundles import loader

# Of CPU, which a loaded machine does not change; far above what any of these inputs needs, compilation included.
MOST_SECONDS = 60
# By the clock; a command that takes longer hangs.
MOST_WAITED = 5 * MOST_SECONDS
MOST_BYTES = 1 << 30
# Bad input (2), the machine's refusal (1); anything else is success or a defect.
REFUSALS = (1, 2)


class Broken(AssertionError):
    """A command did not keep its promise."""


@dataclass(frozen=True)
class Outcome:
    """Exit status, output and cost of a command."""

    status: int
    out: str
    err: str


@dataclass
class Count:
    """Commands that were run, and how many of them ended well."""

    runs: int = 0
    successes: int = 0


COUNT = Count()


def run(arguments: Sequence[object], *, stdin: bytes = b"") -> Outcome:
    """Run ``routerjax ARGUMENTS``.

    A refusal must be one line on standard error and nothing on standard output. An exception that escapes is passed on:
    the caller's test fails with it. A command that hangs ends the process with the stack of every thread.

    Raises:
        Broken: the refusal is not one line, or time or memory went beyond the bound.
    """
    outcome = _bounded(lambda: main([str(argument) for argument in arguments]), stdin, arguments)
    if outcome.status != 0:
        _require_refusal(outcome, "routerjax", ": error: ")
    return outcome


def run_bundle(folder: Path, prompts: Sequence[str]) -> Outcome:
    """Run the bundle's ``routerjax_runtime.py`` on prompts, which it must score or refuse as a command must."""
    module = loader(folder)
    with unittest.mock.patch.object(sys, "argv", ["routerjax_runtime.py", "--", *prompts]):
        outcome = _bounded(module.main, b"", folder)
    if outcome.status != 0:
        _require_refusal(outcome)
    return outcome


def _bounded(command: Callable[[], int | None], stdin: bytes, name: object) -> Outcome:
    """Outcome of a command, as its process would have it, within time and memory."""
    out, err = _Text(), io.StringIO()
    _reset_peak()
    before, started = _status_bytes("VmHWM"), time.process_time()
    faulthandler.dump_traceback_later(MOST_WAITED, exit=True)
    try:
        with _limited_memory(), _standard_streams(stdin, out, err):
            try:
                status = command() or 0
            except SystemExit as error:  # of argparse, or with the message
                status = error.code if isinstance(error.code, int) else 1
                if isinstance(error.code, str):
                    err.write(f"{error.code}\n")
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds, grown = time.process_time() - started, _status_bytes("VmHWM") - before
    COUNT.runs += 1
    COUNT.successes += status == 0
    if seconds > MOST_SECONDS:
        raise Broken(f"{seconds:.0f} CPU-seconds, expected at most {MOST_SECONDS}: {name}")
    if grown > MOST_BYTES:
        raise Broken(f"{grown / 1e6:.0f} MB more than before, expected at most {MOST_BYTES / 1e6:.0f}: {name}")
    return Outcome(status, out.text(), err.getvalue())


def _require_refusal(outcome: Outcome, beginning: str = "", marker: str = "") -> None:
    if outcome.status not in REFUSALS:
        raise Broken(f"exit status {outcome.status}: {outcome.err}")
    if "Traceback" in outcome.err:
        raise Broken(f"a traceback: {outcome.err}")
    last = outcome.err.rstrip("\n").rsplit("\n", 1)[-1]
    if not last or not last.startswith(beginning) or marker not in last or len(last) > 2000:
        raise Broken(f"the refusal is not one short line: {outcome.err!r}")
    if any(not character.isprintable() for character in last):
        raise Broken(f"the refusal holds characters that a terminal would obey: {last!r}")


def strict_json(text: str) -> object:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> object:
        raise Broken(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


class _Text(io.TextIOWrapper):
    """Standard output as a strict UTF-8 stream, which is what refuses half of a broken emoji."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="\n", write_through=True)

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode("utf-8")


@contextlib.contextmanager
def _standard_streams(stdin: bytes, out: io.TextIOWrapper, err: io.StringIO) -> Iterator[None]:
    old = sys.stdin
    # As under C.UTF-8, where bytes that are no UTF-8 come through as surrogates.
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8", errors="surrogateescape")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        sys.stdin = old


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Refuse what goes far beyond the bound, before the machine runs out of memory and other processes die of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = _status_bytes("VmData")
    if used:
        resource.setrlimit(resource.RLIMIT_DATA, (used + 3 * MOST_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(name: str) -> int:
    """Memory of this process as the system counts it under ``name``; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
