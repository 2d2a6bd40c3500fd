"""Seconds, processor seconds and peak memory of reading battles from a parquet file.

    python experiments/bench/read_battles.py --battles 5000000 --prompts 1000000

The file is made up first, in a process of its own, so that its memory does not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

WORDS = ("alpha", "beta", "gamma", "delta", "router", "prompt", "explain", "why", "how", "the", "of", "python", "prove")
MODELS = 60


def make_up(path: Path, battles: int, prompts: int) -> None:
    """Write battles on prompts of 20 words; each battle's prompt and models are drawn at random."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(WORDS, (prompts, 20))
    texts = pa.array([f"{row} {' '.join(words)}" for row, words in enumerate(drawn)])
    names = pa.array([f"model-{row}" for row in range(MODELS)])
    model_a = rng.integers(MODELS, size=battles)
    model_b = (model_a + rng.integers(1, MODELS, size=battles)) % MODELS
    winners = pa.array(["model_a", "model_b", "tie"])
    table = pa.table(
        {
            "prompt": texts.take(pa.array(rng.integers(prompts, size=battles))),
            "model_a": names.take(pa.array(model_a)),
            "model_b": names.take(pa.array(model_b)),
            "winner": winners.take(pa.array(rng.integers(3, size=battles))),
        }
    )
    pyarrow.parquet.write_table(table, path)


def measure(path: Path) -> None:
    """Read the file in this process, and print what it took."""
    from routerjax.data import read_preferences

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    battles = read_preferences(path)
    unique, index = battles.unique_prompts, battles.prompt_index
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(index):,} battles on {len(unique):,} prompts: {wall:.1f} s, {processor:.1f} s of processors,", end=" ")
    print(f"peak {peak / 2**20:.2f} GiB ({before / 2**20:.2f} GiB before)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--battles", type=int, default=5_000_000)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "battles.parquet"
        for work, given in ((make_up, (path, arguments.battles, arguments.prompts)), (measure, (path,))):
            process = context.Process(target=work, args=given)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
