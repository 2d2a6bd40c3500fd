"""Time of scoring MMLU questions from their text, beside a loop over transformers' torch model, one prompt at a time.

    python experiments/bench/score_text.py ROUTER DATA [--prompts 5000] [--runs 3]

ROUTER is a run of ``experiments/bert_golden_mmlu1500.py``; DATA as in ``mf_golden.py``. Needs the parity extra and an
idle machine. The router is exported with ``routerjax export --format hf``, and the folder loaded with
AutoModelForSequenceClassification and AutoTokenizer. The loop is what RouteLLM's routers do for each request: tokenise
one prompt, forward, softmax. Ours is ``router.win_prob(prompts)``. Both start from text, in float32, on every core, and
take turns; seconds are medians with the range. Compilation is reported apart. The win probabilities of both are
compared. Ten minutes on two CPU cores.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from routerjax import export, load_router
from routerjax.data import load_benchmark
from routerjax.router import router_folder

TOLERANCE = 1e-5  # of the win probability


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prompts", type=int, default=5000, help="so many questions of MMLU, drawn with seed 0")
    parser.add_argument("--runs", type=int, default=3, help="timed rounds")
    arguments = parser.parse_args()
    router = load_router(router_folder(arguments.router))
    questions = load_benchmark("mmlu", arguments.data / "routellm_evals").prompts
    drawn = np.random.default_rng(0).choice(len(questions), arguments.prompts, replace=False)
    prompts = [questions[row] for row in drawn]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "hf"
        export.export_hf(router, folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="sdpa"
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    columns = [router.column(router.strong), router.column(router.weak)]

    @torch.inference_mode()
    def loop() -> np.ndarray:
        win_prob = []
        for prompt in prompts:
            logits = model(**tokenizer(prompt, return_tensors="pt", truncation=True)).logits[0, columns]
            win_prob.append(torch.softmax(logits, dim=-1)[0].item())
        return np.asarray(win_prob)

    def ours() -> np.ndarray:
        return router.win_prob(prompts)

    _, first = timed(ours)
    taken: dict[str, list[float]] = {"ours": [], "loop": []}
    found: dict[str, np.ndarray] = {}
    for turn in range(arguments.runs):
        for name, run in [("ours", ours), ("loop", loop)][:: 1 if turn % 2 else -1]:
            found[name], seconds = timed(run)
            taken[name].append(seconds)
    difference = float(np.abs(found["ours"] - found["loop"]).max())
    middle = {name: float(np.median(times)) for name, times in taken.items()}
    print(
        f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), transformers "
        f"{transformers.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"| {len(prompts)} prompts | seconds | prompts a second |")
    print("|---|---|---|")
    for name, label in (("ours", "routerjax"), ("loop", "torch, one at a time")):
        spread = f"({min(taken[name]):.1f}-{max(taken[name]):.1f})"
        print(f"| {label} | {middle[name]:.1f} {spread} | {len(prompts) / middle[name]:.0f} |")
    print(f"\nRatio {middle['loop'] / middle['ours']:.2f}. Compiling took {first - middle['ours']:.1f} s once.")
    print(f"The win probabilities differ by at most {difference:.1e}.")
    if not difference <= TOLERANCE:
        raise SystemExit(f"the win probabilities differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
