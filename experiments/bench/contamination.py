"""Seconds and memory that finding contaminated prompts takes, beside the whole similarity matrix in numpy.

    python experiments/bench/contamination.py

14,037 evaluation prompts (the size of MMLU) against 30,000 training prompts, 384 wide: synthetic unit vectors and texts
of about 400 characters, among them 100 texts in common and 100 near vectors. Each row is a fresh process: seconds are
wall time from the arrays and texts to the answer, compilation included, best of three processes; the peak is that of
the whole process, imports and input included. Takes half a minute on two cores.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
import unicodedata

import numpy as np

NUM_EVAL, NUM_TRAIN, WIDTH, PLANTED = 14_037, 30_000, 384, 100
THRESHOLD = 0.95
RUNS = 3


def unit_vectors(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, WIDTH), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(rng: np.random.Generator, rows: int) -> list[str]:
    words = np.asarray([f"Word{number}" for number in range(5000)])
    return [" ".join(chosen) for chosen in words[rng.integers(5000, size=(rows, 50))]]


def synthetic() -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    eval_prompts, train_prompts = texts(rng, NUM_EVAL), texts(rng, NUM_TRAIN)
    eval_embedding, train_embedding = unit_vectors(rng, NUM_EVAL), unit_vectors(rng, NUM_TRAIN)
    eval_prompts[:PLANTED] = [prompt.upper() + " " for prompt in train_prompts[:PLANTED]]
    noise = np.float32(0.2) * unit_vectors(rng, PLANTED)  # of cosine 0.98
    eval_embedding[PLANTED : 2 * PLANTED] = train_embedding[-PLANTED:] + noise
    return eval_prompts, train_prompts, eval_embedding, train_embedding


def routerjax_mask(
    eval_prompts: list[str], train_prompts: list[str], eval_embedding: np.ndarray, train_embedding: np.ndarray
) -> np.ndarray:
    from routerjax import data

    return data.contaminated(eval_prompts, train_prompts, eval_embedding, train_embedding, threshold=THRESHOLD).mask


def whole_matrix_mask(
    eval_prompts: list[str], train_prompts: list[str], eval_embedding: np.ndarray, train_embedding: np.ndarray
) -> np.ndarray:
    def normalized(text: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())

    known = {normalized(prompt) for prompt in train_prompts}
    same_text = np.asarray([normalized(prompt) in known for prompt in eval_prompts])
    eval_unit = eval_embedding / np.linalg.norm(eval_embedding, axis=1, keepdims=True)
    train_unit = train_embedding / np.linalg.norm(train_embedding, axis=1, keepdims=True)
    similarity = eval_unit @ train_unit.T
    nearest = similarity.argmax(axis=1)
    return same_text | (similarity[np.arange(len(nearest)), nearest] >= THRESHOLD)


METHODS = {"routerjax": routerjax_mask, "whole matrix, numpy": whole_matrix_mask}


def measure(method: str) -> dict[str, float]:
    """One run in this process."""
    if method == "routerjax":
        importlib.import_module("routerjax")  # what is timed is not an import
    arguments = synthetic()
    start = time.perf_counter()
    mask = METHODS[method](*arguments)
    seconds = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"seconds": seconds, "peak_mb": peak_kib * 1024 / 1e6, "contaminated": int(mask.sum())}


def main() -> None:
    best: dict[str, dict[str, float]] = {}
    for method in [*METHODS] * RUNS:
        command = [sys.executable, __file__, method]
        finished = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if finished["contaminated"] != 2 * PLANTED:
            raise SystemExit(f"{method} found {finished['contaminated']} contaminated prompts, not {2 * PLANTED}")
        best[method] = min(best.get(method, finished), finished, key=lambda run: run["seconds"])
    slowest = best["whole matrix, numpy"]["seconds"]
    print(f"{NUM_EVAL:,} x {NUM_TRAIN:,} prompts, {WIDTH} wide, {os.cpu_count()} CPU cores\n")
    print("| method | seconds | peak RSS, MB | times as fast |\n|---|---|---|---|")
    for method, run in best.items():
        print(f"| {method} | {run['seconds']:.2f} | {run['peak_mb']:,.0f} | {slowest / run['seconds']:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
