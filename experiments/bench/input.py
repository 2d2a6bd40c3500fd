"""Memory and input wait of training mf on battles that do not lie on the device.

    python experiments/bench/input.py [--battles 10000000] [--prompts 1000000] [--resident]

It makes up battles on prompts of 20 words, and embeddings, by a seed, in a folder of its own; trains on them by
`routerjax train`, whose anonymous memory it samples every 50 ms; and prints a table. It takes ten minutes and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from processes import anonymous_bytes

WORDS = ("alpha", "beta", "gamma", "delta", "router", "prompt", "explain", "why", "how", "the", "of", "python", "prove")
MODELS, WIDTH, ROWS = 20, 384, 2**18
CONFIG = """\
from routerjax.config import (
    BattleSource, DataConfig, ExperimentConfig, FeatureConfig, OptimizerConfig, RouterConfig, TrainingConfig
)


def get_config():
    return ExperimentConfig(
        data=DataConfig(root={root!r}, battles=(BattleSource(path="battles.{ending}"),), validation_fraction=0.02),
        features=FeatureConfig(embeddings="embedding.npy"),
        router=RouterConfig(strong="model-00", weak="model-01"),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(epochs={epochs}, batch_size=4096, resident={resident}),
    )
"""
# Phases of a run, by the log line that ends each.
PHASES = {
    "imports, hash of the files, battles read": " battles on ",
    "sides swapped, split, embeddings checked": "training mf",
    "first epoch": "epoch 1:",
    "other epochs, router written": None,
}


def make_up(folder: Path, *, num_battles: int, num_prompts: int, ending: str) -> None:
    """Write battles, and embeddings that say how they end; each prompt first appears in the order of the rows."""
    rng = np.random.default_rng(0)
    embedding = np.lib.format.open_memmap(folder / "embedding.npy", "w+", np.float32, (num_prompts, WIDTH))
    for start in range(0, num_prompts, ROWS):
        part = embedding[start : start + ROWS]
        part[:] = rng.standard_normal(part.shape, np.float32)
    (folder / "embedding.npy.json").write_text('{"fingerprint": "made up"}')
    ability = rng.standard_normal((WIDTH, MODELS)).astype(np.float32)
    names = pa.array([f"model-{row:02}" for row in range(MODELS)])
    winners = pa.array(["model_a", "model_b", "tie"])
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "model_a", "model_b", "winner")])
    path = folder / f"battles.{ending}"
    make_writer = pyarrow.parquet.ParquetWriter if ending == "parquet" else pyarrow.csv.CSVWriter
    words = np.asarray(WORDS)
    with make_writer(path, schema) as writer:
        for start in range(0, num_battles, ROWS):
            count = min(ROWS, num_battles - start)
            prompt = rng.integers(num_prompts, size=count)
            fresh = np.arange(start, start + count)
            prompt[fresh < num_prompts] = fresh[fresh < num_prompts]
            unique, place = np.unique(prompt, return_inverse=True)
            # A prompt's words are a function of its number.
            drawn = words[(unique[:, None] * np.arange(1, 40, 2) + np.arange(20)) % 1009 % len(WORDS)]
            texts = pa.array(
                [f"{row} {' '.join(one)}" for row, one in zip(unique.tolist(), drawn.tolist(), strict=True)]
            )
            model_a = rng.integers(MODELS, size=count)
            model_b = (model_a + rng.integers(1, MODELS, size=count)) % MODELS
            scores = embedding[unique] @ ability
            difference = scores[place, model_a] - scores[place, model_b] + 10 * rng.standard_normal(count)
            winner = np.where(np.abs(difference) < 2, 2, difference < 0)
            writer.write_table(
                pa.table(
                    {
                        "prompt": texts.take(pa.array(place)),
                        "model_a": names.take(pa.array(model_a)),
                        "model_b": names.take(pa.array(model_b)),
                        "winner": winners.take(pa.array(winner)),
                    }
                )
            )


class Sampled:
    """A command that runs, and the most memory that it has had since it was last asked."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.peak = 0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while self.process.poll() is None:
            self.peak = max(self.peak, anonymous_bytes(self.process.pid))
            time.sleep(0.05)


def jax_alone() -> int:
    """Memory of a process that has imported JAX and used it once."""
    code = "import jax.numpy as jnp; jnp.ones(3).sum().block_until_ready(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        before = 0
        while (now := anonymous_bytes(process.pid)) == 0 or now != before:
            before = now
            time.sleep(2)
        process.communicate(b"\n")
    return before


def train(folder: Path, output: Path) -> tuple[dict[str, tuple[float, int]], list[dict[str, float]]]:
    """Train, and return the seconds and the peak memory of each phase, and the rows of the epochs."""
    run = Sampled([sys.executable, "-m", "routerjax.cli", "train", str(folder / "config.py"), "--output", str(output)])
    phases: dict[str, tuple[float, int]] = {}
    waiting = list(PHASES.items())
    began = time.perf_counter()

    def end_phase() -> None:
        nonlocal began
        now = time.perf_counter()
        phases[waiting.pop(0)[0]] = (now - began, run.peak)
        began, run.peak = now, 0

    assert run.process.stderr is not None
    for line in run.process.stderr:
        if "reading:" not in line:  # no progress bar
            print("   ", line.rstrip()[:200], file=sys.stderr)
        if waiting[0][1] and waiting[0][1] in line:
            end_phase()
    if run.process.wait():
        raise SystemExit(run.process.returncode)
    end_phase()
    rows = (output / "training" / "metrics.jsonl").read_text().splitlines()
    return phases, [json.loads(row) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--battles", type=int, default=10_000_000)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--resident", action="store_true", help="all on the device, for comparison")
    parser.add_argument("--ending", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--folder", type=Path, help="where the data is made up, and kept; default a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"battles.{arguments.ending}").exists():
            make = f"from input import *; make_up(Path({str(folder)!r}), num_battles={arguments.battles}, "
            make += f"num_prompts={arguments.prompts}, ending={arguments.ending!r})"
            subprocess.run([sys.executable, "-c", make], check=True, cwd=Path(__file__).parent)
        settings = {"epochs": arguments.epochs, "resident": arguments.resident, "ending": arguments.ending}
        (folder / "config.py").write_text(CONFIG.format(root=str(folder), **settings))
        base = jax_alone()
        phases, rows = train(folder, Path(temporary) / "run")
    print(f"{arguments.battles:,} battles on {arguments.prompts:,} prompts, {settings}, {os.cpu_count()} cores;")
    print(f"JAX alone has {base / 2**30:.2f} GiB\n")
    print("| phase | seconds | peak of anonymous memory above JAX's, GiB |\n|---|---|---|")
    for name, (seconds, peak) in phases.items():
        print(f"| {name} | {seconds:.0f} | {(peak - base) / 2**30:.2f} |")
    print("\n| epoch | battles/s | step p50, ms | waiting for input | loss | held-out loss |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        speed = f"{row['battles_per_second']:,.0f} | {1000 * row['step_seconds_p50']:.1f}"
        losses = f"{row['loss']:.4f} | {row['validation_loss']:.4f}"
        print(f"| {row['epoch']} | {speed} | {row['input_wait_share']:.2%} | {losses} |")


if __name__ == "__main__":
    main()
