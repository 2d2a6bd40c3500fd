"""Memory, time and resuming of `routerjax score` on a million prompts.

    PYTHONPATH=. python experiments/bench/scoring.py [--rows 1000000] [--killed-rows 200000] [--output FILE.md]
    PYTHONPATH=. python experiments/bench/scoring.py --router checkpoints/mf-minilm --rows 20000 --killed-rows 20000

Each run is a process of its own whose anonymous memory is sampled every 50 ms. By default the router is a matrix
factorisation on a random encoder of two layers, 16 wide, so that what is measured is all but the encoder. The prompts
are short, made from a seed, in a .jsonl file with a column beside them, and written as .jsonl. Then a table of
--killed-rows is scored once without, and once with a SIGKILL at random moments and --resume after each, on an empty
embedding cache each time, and the two outputs are compared byte for byte.
"""

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from processes import anonymous_bytes

from routerjax import save_router
from tests.routers import tiny_router

WORDS = ["prove", "that", "there", "are", "primes", "poem", "write", "a", "country", "capital", "please", "infinitely"]
FEW_ROWS = 20_000
KILLS = 5
MEBIBYTE = 2**20


class Run(NamedTuple):
    """One process: its exit status, seconds, and peak of its anonymous memory in MiB."""

    status: int
    seconds: float
    peak: float


def write_prompts(path: Path, rows: int) -> None:
    """Write short prompts, all of them different, with a number beside each."""
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        for row in range(rows):
            text = " ".join(rng.choice(WORDS, rng.integers(2, 9)))
            stream.write(json.dumps({"id": row, "prompt": f"{text} {row}"}) + "\n")


def score(router: Path, source: Path, output: Path, cache: Path, *, resume: bool = False, kill_after: float = 0) -> Run:
    """Score a table in a process of its own, which is killed after some seconds, if that is not 0."""
    command = [sys.executable, "-m", "routerjax.cli", "score", str(router), "--input", str(source)]
    command += ["--output", str(output), *(["--resume"] if resume else [])]
    environment = {**os.environ, "ROUTERJAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    began, peak = time.monotonic(), 0.0
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid) / MEBIBYTE)
            if kill_after and time.monotonic() - began > kill_after:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
    return Run(process.returncode, time.monotonic() - began, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--killed-rows", type=int, default=200_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        router = arguments.router
        if router is None:
            router = folder / "router"
            save_router(tiny_router(folder, threshold=0.5), router)
        say("| rows | MiB at the peak | seconds | prompts a second |")
        say("|---:|---:|---:|---:|")
        peaks = []
        for rows in dict.fromkeys([min(FEW_ROWS, arguments.rows), arguments.rows]):
            write_prompts(folder / f"{rows}.jsonl", rows)
            run = score(router, folder / f"{rows}.jsonl", folder / f"{rows}.out.jsonl", folder / f"cache{rows}")
            assert run.status == 0
            peaks.append(run.peak)
            say(f"| {rows:,} | {run.peak:.0f} | {run.seconds:.0f} | {rows / run.seconds:.0f} |")
        say("")
        say(f"Growth from the first to the last: {peaks[-1] - peaks[0]:.0f} MiB.")
        killed = folder / "killed.jsonl"
        write_prompts(killed, arguments.killed_rows)
        whole = score(router, killed, folder / "whole.jsonl", folder / "cache-whole")
        assert whole.status == 0
        rng, kills, resume, run = np.random.default_rng(1), 0, False, None
        output = folder / "resumed.jsonl"
        while run is None or run.status != 0:
            kill_after = float(rng.uniform(0.1, 0.6)) * whole.seconds if kills < KILLS else 0
            run = score(router, killed, output, folder / "cache-killed", resume=resume, kill_after=kill_after)
            kills += run.status == -signal.SIGKILL
            assert run.status in (0, -signal.SIGKILL)
            resume = output.with_name(f"{output.name}.part").exists()
        same = output.read_bytes() == (folder / "whole.jsonl").read_bytes()
        say("")
        say(
            f"{arguments.killed_rows:,} rows, killed {kills} times at random moments and resumed: "
            f"{'the same output, byte for byte' if same else 'ANOTHER OUTPUT'}."
        )
    if arguments.output is not None:
        named = "a random encoder, 16 wide" if arguments.router is None else arguments.router
        head = [
            "# `routerjax score`: memory, time, resuming",
            "",
            f"`experiments/bench/scoring.py`, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} CPUs; "
            f"router: {named}. Memory is the process's `RssAnon`, sampled every 50 ms.",
            "",
        ]
        arguments.output.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
