"""``python -m tests.fuzz --minutes 30``: draw inputs for every property in turn, and say what was found."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

# As the suite has it: nothing is downloaded, and the user's own cache is left alone.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

from tests.fuzz.commands import COUNT
from tests.fuzz.place import make_place
from tests.fuzz.properties import PROPERTIES
from tests.fuzz.search import search

EXAMPLES_A_TURN = 20


def main() -> int:
    """Search until the time is over; exit with 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PROPERTIES, nargs="+", default=list(PROPERTIES))
    parser.add_argument("--output", type=Path, help="write a table of what was tried and found")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    inputs: Counter[str] = Counter()
    findings: dict[str, str] = {}
    started, turn = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROUTERJAX_CACHE"] = str(Path(folder) / "cache")
        place_folder = Path(folder) / "place"
        place_folder.mkdir()
        place = make_place(place_folder)
        while time.monotonic() - started < 60 * arguments.minutes:
            for name in arguments.only:
                before = COUNT.runs
                try:
                    search(PROPERTIES[name], place, examples=EXAMPLES_A_TURN, seed=arguments.seed + turn)
                except Exception as error:  # whatever escapes is what is looked for
                    text = "".join(traceback.format_exception(error))
                    place_of = traceback.extract_tb(error.__traceback__)[-1]
                    # What was drawn stands in the message: only its beginning tells findings apart.
                    key = f"{name}: {type(error).__name__} at {place_of.name}:{place_of.lineno}: {str(error)[:60]!r}"
                    if findings.setdefault(key, text) is text:
                        print(f"--- finding {len(findings)} (seed {arguments.seed + turn})\n{key}\n{text}", flush=True)
                inputs[name] += COUNT.runs - before
            turn += 1
            print(f"{time.monotonic() - started:.0f} s: {COUNT.runs} commands, {len(findings)} findings", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(_table(arguments, inputs, findings), encoding="utf-8")
    return 1 if findings else 0


def _table(arguments: argparse.Namespace, inputs: Counter[str], findings: dict[str, str]) -> str:
    lines = [
        "# Commands on inputs that are nearly right",
        "",
        f"`make fuzz` on {time.strftime('%Y-%m-%d')}, {arguments.minutes:.0f} minutes, seed {arguments.seed}, "
        f"Python {platform.python_version()}, {os.cpu_count()} CPU cores: {COUNT.runs:,} commands, of which "
        f"{COUNT.successes:,} ended well and the others refused their input; {len(findings)} findings.",
        "A finding is a traceback, a refusal of more than a line, success without output, other answers unsaid,",
        "a file read outside of its folder, 60 CPU-seconds, or a gigabyte.",
        "",
        "| property | commands |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in inputs.items()),
        *(f"\n- {finding}" for finding in findings),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
