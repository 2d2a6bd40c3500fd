"""Our loader beside grain, and our reading of battles beside the memory-mapped tables of `datasets`.

    pip install grain datasets
    python experiments/bench/input.py --folder DATA  # makes the data up
    python experiments/bench/input_loaders.py DATA [--batches 300]

Each line is a process of its own, whose anonymous memory is sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from processes import anonymous_bytes

BATCH_SIZE, AHEAD = 4096, 3
COLUMNS = ["prompt", "model_a", "model_b", "winner"]


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    """Columns of random battles on the prompts whose embeddings the folder has, mapped."""
    embedding = np.load(folder / "embedding.npy", mmap_mode="r")
    rng, battles = np.random.default_rng(0), 10 * len(embedding)
    integers = {
        "prompt": rng.integers(len(embedding), size=battles, dtype=np.int32),
        **{name: rng.integers(20, size=battles, dtype=np.int32) for name in ("model_a", "model_b")},
    }
    outcome = np.eye(3, dtype=np.float32)[rng.integers(3, size=battles)]
    return {**integers, "outcome": outcome, "weight": np.ones(battles, np.float32), "embedding": embedding}


def ours(folder: Path):
    """Batches of `data.EmbeddedBatches` through `training.prefetch`."""
    from routerjax.data import EmbeddedBatches, Preferences
    from routerjax.training.prefetch import Prefetch

    columns = columns_of(folder)
    prompts = tuple(map(str, range(len(columns["embedding"]))))
    model_b = np.where(columns["model_a"] == columns["model_b"], 20, columns["model_b"])
    battles = Preferences(
        prompts, columns["prompt"], columns["model_a"], model_b, columns["outcome"], columns["weight"],
        tuple(f"model-{row}" for row in range(21)),
    )  # fmt: skip
    rows = np.asarray([int(prompt) for prompt in battles.unique_prompts])
    batches = EmbeddedBatches(battles, columns["embedding"], rows, batch_size=BATCH_SIZE)
    return Prefetch(batches.shuffled(seed=0, epoch=0), ahead=AHEAD)


def grain_records(folder: Path):
    """Grain as its guide has it: a source of records, shuffled and batched."""
    import grain

    columns = columns_of(folder)
    embedding = columns.pop("embedding")

    class Source:
        def __len__(self) -> int:
            return len(columns["prompt"])

        def __getitem__(self, battle: int) -> dict[str, np.ndarray]:
            record = {name: column[battle] for name, column in columns.items()}
            return {**record, "embedding": embedding[record["prompt"]]}

    dataset = grain.MapDataset.source(Source()).shuffle(seed=0).batch(BATCH_SIZE)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=AHEAD)))


def grain_batches(folder: Path):
    """Grain as threads around batches that are gathered at once, in an order of our own."""
    import grain

    columns = columns_of(folder)
    embedding = columns.pop("embedding")
    order = np.random.default_rng(0).permutation(len(columns["prompt"]))

    def gather(place: int) -> dict[str, np.ndarray]:
        battles = order[place * BATCH_SIZE : (place + 1) * BATCH_SIZE]
        batch = {name: column[battles] for name, column in columns.items()}
        return {**batch, "embedding": np.take(np.asarray(embedding), batch["prompt"], axis=0)}

    dataset = grain.MapDataset.range(len(order) // BATCH_SIZE).map(gather)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=AHEAD)))


def read_parts(folder: Path) -> None:
    """Read the columns of the battles as `read_preferences` does."""
    from routerjax.tables import read_table

    read_table(folder / "battles.parquet", columns=COLUMNS)


def read_datasets(folder: Path) -> None:
    """Convert the battles to the Arrow files of `datasets`, and read the same columns from these, mapped."""
    import datasets

    datasets.disable_progress_bars()
    from routerjax.tables.dictionaries import joined_table

    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        files = str(folder / "battles.parquet")
        split = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        size = sum(path.stat().st_size for path in Path(cache).rglob("*.arrow"))
        print(f"{time.perf_counter() - began:.0f} s of what follows to convert to {size / 1e9:.2f} GB:")
        parts = split.with_format("arrow").iter(2**18)
        joined_table(parts, COLUMNS)


LOADERS = {"ours": ours, "grain, records": grain_records, "grain, batches": grain_batches}
READERS = {"pyarrow, part by part": read_parts, "datasets, mapped": read_datasets}


def measure(name: str, folder: Path, count: int) -> None:
    """Print the line of one loader or reader."""
    peak, is_over = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, anonymous_bytes())

    if name in READERS:
        before = anonymous_bytes()
        threading.Thread(target=sample, daemon=True).start()
        began, processor = time.perf_counter(), time.process_time()
        READERS[name](folder)
        processor = time.process_time() - processor
        figure = f"{time.perf_counter() - began:.0f} s | {processor:.0f} s of processors"
    else:
        batches = LOADERS[name](folder)
        next(batches)
        before = anonymous_bytes()
        threading.Thread(target=sample, daemon=True).start()
        began, processor = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(batches)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        figure = f"{count / seconds:.0f} batches/s | {1000 * processor / count:.1f} ms of processors a batch"
    print(f"| {name} | {figure} | {(peak - before) / 2**20:.0f} MiB |", flush=True)
    os._exit(0)  # threads of any loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--only", choices=[*LOADERS, *READERS])
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only, arguments.folder, arguments.batches)
    for name in (*LOADERS, *READERS):
        count = 10 if name == "grain, records" else arguments.batches
        command = [sys.executable, __file__, str(arguments.folder), "--batches", str(count), "--only", name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
