"""End training at random moments, resume it each time, and compare what it learns with a run that nobody ended.

    python experiments/bench/kills.py --kills 20 --processes 1 2 --output experiments/results/kills.md

A run is of mf on simulated battles with random embeddings, on eight devices of the host, with a checkpoint every few
steps. SIGKILL comes at a random moment: while the processes start, within an epoch, while a checkpoint is written.
Where two processes share the run, all are killed, or one is, and the other must end by itself within 60 s. SIGTERM is
sent to one, and all must have saved and ended within 30 s. Then the run goes on with ``--resume``. The parameters, and
the figures of each epoch that are not of its speed, must be those of the whole run bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from processes import free_port

from routerjax import load_router
from routerjax.data import simulate_arena, write_preferences
from routerjax.training.throughput import FIGURES

CONFIG = """
from routerjax.config import (
    BattleSource, DataConfig, ExperimentConfig, FeatureConfig, OptimizerConfig, RouterConfig, TrainingConfig
)


def get_config():
    return ExperimentConfig(
        data=DataConfig(root={root!r}, battles=(BattleSource(path="battles.parquet"),), validation_fraction=0.2),
        features=FeatureConfig(embeddings="embeddings.npy"),
        router=RouterConfig(strong="sim-large", weak="sim-small", attributes={{"model_dim": 32, "noise_std": 0.1}}),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=TrainingConfig(
            epochs={epochs}, batch_size=64, devices="pmap", checkpoint_every_steps=3, keep_last=3
        ),
    )
"""
DEVICES = 8
PREEMPTED, LOST = 75, 1
# In which the processes have ended.
MOST_SECONDS = {"at the start": 5, "within training": 5, "SIGTERM": 30, "one is lost": 60}


def write_run(folder: Path, epochs: int, prompts: int) -> None:
    """Write battles, embeddings and ``config.py``."""
    battles = simulate_arena(num_prompts=prompts, num_test_prompts=10).preferences
    write_preferences(battles, folder / "battles.parquet")
    rng = np.random.default_rng(0)
    np.save(folder / "embeddings.npy", rng.standard_normal((len(battles.unique_prompts), 48)).astype(np.float32))
    (folder / "embeddings.npy.json").write_text('{"fingerprint": "random"}')
    (folder / "config.py").write_text(CONFIG.format(root=str(folder), epochs=epochs))


def start(folder: Path, output: Path, count: int) -> list[subprocess.Popen[bytes]]:
    """Start a run of so many processes, or go on with it."""
    resume = ["--resume"] if (output / "run.json").exists() else []
    command = [sys.executable, "-m", "routerjax.cli", "train", str(folder / "config.py"), "--output", str(output)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES // count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    port, processes = free_port(), []
    for index in range(count):
        cluster = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
        cluster += ["--num-processes", str(count), "--process-id", str(index)]
        with (folder / f"{output.name}.{index}.log").open("a") as log:
            processes.append(
                subprocess.Popen(
                    [*command, *resume, *(cluster if count > 1 else [])], env=environment, stdout=log, stderr=log
                )
            )
    return processes


def checkpoints(output: Path) -> set[str]:
    """Names of the checkpoints that are written."""
    return {name for name in in_checkpoints(output) if name.isdigit()}


def in_checkpoints(output: Path) -> list[str]:
    """Names in the folder of checkpoints, those that are being written too."""
    folder = output / "training" / "checkpoints"
    return os.listdir(folder) if folder.is_dir() else []


def wait_for_moment(process: subprocess.Popen[bytes], output: Path, kind: str, draw: random.Random) -> bool:
    """Wait for a random moment; return False where the run was over before.

    Within training it is between two checkpoints, two to four after those that are there: by the time that the last one
    took, so that it is within the run on a machine of any speed.
    """
    if kind == "at the start":
        time.sleep(draw.uniform(0, 6))
        return process.poll() is None
    # The first new checkpoint only starts the clock: before it the process starts and compiles, which takes far longer.
    before, count, times = checkpoints(output), draw.randint(2, 4), []
    while len(times) < count:
        if process.poll() is not None:
            return False
        names = checkpoints(output)
        if names - before:
            times.append(time.monotonic())
            before |= names
        time.sleep(0.002)
    time.sleep(draw.uniform(0, times[-1] - times[-2]))
    return process.poll() is None


def end_once(processes: Sequence[subprocess.Popen[bytes]], output: Path, kind: str, draw: random.Random) -> str | None:
    """End a run at a random moment; say when it was, or None where the run was over before."""
    if not wait_for_moment(processes[0], output, kind, draw):
        return None
    victims = list(processes) if kind in ("at the start", "within training") else [draw.choice(list(processes))]
    draw.shuffle(victims)
    for victim in victims:
        victim.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        time.sleep(draw.uniform(0, 0.1))
    is_writing = any("tmp" in name for name in in_checkpoints(output))
    began = time.monotonic()
    statuses = [process.wait(MOST_SECONDS[kind]) for process in processes]
    seconds = time.monotonic() - began
    if kind == "SIGTERM":
        if set(statuses) != {PREEMPTED}:
            raise SystemExit(f"after SIGTERM the processes exit with {statuses}, expected {PREEMPTED}")
        return f"SIGTERM: all had saved and ended after {seconds:.1f} s"
    if kind == "one is lost":
        (status,) = {process.returncode for process in processes if process not in victims}
        index = next(place for place, process in enumerate(processes) if process not in victims)
        log = (output.parent / f"{output.name}.{index}.log").read_text().splitlines()
        if status != LOST or "another process of this run has ended" not in log[-1]:
            raise SystemExit(f"a process whose other is lost exits with {status}, expected {LOST}: {log[-1]}")
        return f"one is lost: the other ended after {seconds:.0f} s"
    return "while a checkpoint is written" if is_writing and kind == "within training" else kind


def learned(output: Path) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """Parameters, and the rows of the epochs without what is measured."""
    params = [np.asarray(leaf) for leaf in jax.tree.leaves(load_router(output / "router").variables)]
    rows = map(json.loads, (output / "training" / "metrics.jsonl").read_text().splitlines())
    return params, [{name: value for name, value in row.items() if name not in FIGURES} for row in rows]


def is_same(one: Path, other: Path) -> bool:
    """Compare two runs bit for bit."""
    (params, rows), (other_params, other_rows) = learned(one), learned(other)
    return rows == other_rows and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(params, other_params, strict=True)
    )


def run(
    folder: Path, *, count: int, kinds: Sequence[str], seed: int, epochs: int, prompts: int
) -> tuple[list[str], bool]:
    """End a run of ``count`` processes so many times; return the moments, and if it learned what a whole one does."""
    folder.mkdir()
    write_run(folder, epochs, prompts)
    for process in start(folder, folder / "whole", count):
        if process.wait():
            raise SystemExit((folder / "whole.0.log").read_text())
    draw, moments, output = random.Random(seed), [], folder / "killed"
    for kind in kinds:
        moment = end_once(start(folder, output, count), output, kind, draw)
        if moment is None:
            raise SystemExit(f"the run of {count} was over after {len(moments)} ends: give it more --epochs")
        print(f"{count} process(es), end {len(moments) + 1}: {moment}", flush=True)
        moments.append(moment)
    for process in start(folder, output, count):
        if process.wait():
            raise SystemExit((folder / "killed.0.log").read_text()[-2000:])
    return moments, is_same(folder / "whole", output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="by SIGKILL, for each of --processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[400, 40], help="of a run, for each of --processes")
    parser.add_argument("--prompts", type=int, default=300, help="of the battles")
    parser.add_argument("--kinds", nargs="+", choices=MOST_SECONDS, help="of the ends, instead of random ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a table, as Markdown")
    arguments = parser.parse_args()
    lines, all_same = ["| processes | ended | the same bit for bit |", "|---|---|---|"], True
    with tempfile.TemporaryDirectory() as folder:
        for count, epochs in zip(arguments.processes, arguments.epochs, strict=True):
            draw = random.Random(arguments.seed)
            killed = ["at the start", *["within training"] * 3, *["one is lost"] * (count > 1)]
            kinds = arguments.kinds or [*draw.sample(killed * arguments.kills, arguments.kills), "SIGTERM", "SIGTERM"]
            seed = arguments.seed + count
            size = {"epochs": epochs, "prompts": arguments.prompts}
            moments, same = run(Path(folder) / str(count), count=count, kinds=kinds, seed=seed, **size)
            counts = collections.Counter(moment.split(":")[0] for moment in moments)
            ends = "; ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
            slowest = [
                f"{kind}: at most {max(float(part.split()[-2]) for part in moments if part.startswith(kind)):.0f} s"
                for kind in ("one is lost", "SIGTERM")
                if kind in counts
            ]
            took = f" ({', '.join(slowest)})" if slowest else ""
            lines.append(f"| {count} | {ends}{took} | {'yes' if same else 'NO'} |")
            print(lines[-1], flush=True)
            all_same &= same
    table = "\n".join(lines)
    print(table)
    if arguments.output is not None:
        title = f"# Runs that are ended at random moments, and resumed\n\n`python {' '.join(sys.argv)}`, "
        hardware = f"{datetime.date.today()}, {os.cpu_count()} CPU cores, jax {jax.__version__}.\n\n"
        arguments.output.write_text(title + hardware + table + "\n")
    raise SystemExit(0 if all_same else 1)


if __name__ == "__main__":
    main()
