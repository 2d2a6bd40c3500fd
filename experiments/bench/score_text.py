"""Time of scoring MMLU questions from text, beside transformers' torch model: batch against batch, one against one.

    python experiments/bench/score_text.py DATA [--prompts 1000] [--single 100] [--runs 5]

DATA as in ``mf_golden.py``. Needs the parity extra. The router is MiniLM under a BERT classifier's own head, which is
not trained: time does not depend on the weights. It is exported with ``formats.export`` and the folder loaded with
AutoModelForSequenceClassification and AutoTokenizer. Both sides start from text, compute in float32 on every core, and
take turns, so that other work on the machine slows both.

In batches: ``router.win_prob(prompts)`` against torch on the same batches, rows and order included, each padded to its
longest prompt. One at a time: ``router.win_prob([prompt])`` against tokenise, forward, softmax, which is what
RouteLLM's routers do for each request; the sides alternate at each prompt. Compilation is reported apart. The win
probabilities of both are compared. Five minutes on two idle CPU cores. On a machine that has other work run it on one
core (``taskset -c 0``): threads that wait for each other make torch many times slower there than it is by itself.
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

from routerjax import Router, formats
from routerjax.config import FeatureConfig
from routerjax.data import load_benchmark
from routerjax.families import BERT
from routerjax.features import load_tokens
from routerjax.policies import Threshold

TOLERANCE = 1e-5  # of the win probability
ENCODER, MODELS = FeatureConfig.encoder, ("strong", "weak")


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def untrained_router() -> Router:
    featurizer = load_tokens(ENCODER, max_length=FeatureConfig.max_length)
    module = BERT.make_module(num_outputs=2, attributes={"head": "architecture"}, featurizer=featurizer)
    return Router(
        module=module,
        featurizer=featurizer,
        models=MODELS,
        policy=Threshold(*MODELS),
        variables=BERT.start(module, featurizer, jax.random.key(0)),
    )


class Torch:
    """The exported router in transformers."""

    def __init__(self, router: Router, folder: Path) -> None:
        formats.export(router, folder, "hf")
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        self.model = load(folder, attn_implementation="sdpa").eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def win_prob(self, prompts: list[str]) -> np.ndarray:
        read = self.tokenizer(prompts, return_tensors="pt", truncation=True, padding=len(prompts) > 1)
        return torch.softmax(self.model(**read).logits, dim=-1)[:, 0].numpy()

    def in_batches(self, prompts: list[str], batches: list[np.ndarray]) -> np.ndarray:
        win_prob = np.zeros(len(prompts), np.float32)
        for rows in batches:
            win_prob[rows] = self.win_prob([prompts[row] for row in rows])
        return win_prob


def row(what: str, ours: list[float], theirs: list[float], unit: str) -> str:
    """Medians with the quartiles, and the median of the ratios of neighbours in time."""
    cells = []
    for seconds in (ours, theirs):
        low, middle, high = np.percentile(np.array(seconds) * (1000 if unit == "ms" else 1), [25, 50, 75])
        cells.append(f"{middle:.1f} ({low:.1f}-{high:.1f}) {unit}")
    ratio = np.percentile(np.array(theirs) / np.array(ours), [25, 50, 75])
    return f"| {what} | {cells[0]} | {cells[1]} | {ratio[1]:.2f} ({ratio[0]:.2f}-{ratio[2]:.2f}) |"


def alternate(sides: list[Callable[[], np.ndarray]], turn: int) -> list[tuple[np.ndarray, float]]:
    """Results and seconds of both sides in their order; which one starts changes from turn to turn."""
    order = (0, 1) if turn % 2 else (1, 0)
    found = {side: timed(sides[side]) for side in order}
    return [found[0], found[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prompts", type=int, default=1000, help="so many questions of MMLU, drawn with seed 0")
    parser.add_argument("--single", type=int, default=100, help="so many of them one at a time")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds in batches")
    arguments = parser.parse_args()
    questions = load_benchmark("mmlu", arguments.data / "routellm_evals").prompts
    drawn = np.random.default_rng(0).choice(len(questions), arguments.prompts, replace=False)
    prompts = [questions[place] for place in drawn]
    single = prompts[: arguments.single]
    router = untrained_router()
    with tempfile.TemporaryDirectory() as directory:
        theirs = Torch(router, Path(directory) / "hf")
    batches = [rows for rows, _ in router.featurizer.tokenizer.batches(router.featurizer.tokenizer.token_ids(prompts))]

    ours_in_batches, first = timed(lambda: router.win_prob(prompts))
    _, first_single = timed(lambda: np.concatenate([router.win_prob([prompt]) for prompt in single]))
    theirs.win_prob(prompts[:8])
    seconds: list[list[float]] = [[], []]
    for turn in range(arguments.runs):
        sides = alternate([lambda: router.win_prob(prompts), lambda: theirs.in_batches(prompts, batches)], turn)
        for side, (_, taken) in enumerate(sides):
            seconds[side].append(taken)
    difference = float(np.abs(ours_in_batches - sides[1][0]).max())
    one: list[list[float]] = [[], []]
    for turn, prompt in enumerate(single):
        sides = alternate(
            [lambda prompt=prompt: router.win_prob([prompt]), lambda prompt=prompt: theirs.win_prob([prompt])], turn
        )
        difference = max(difference, float(np.abs(sides[0][0] - sides[1][0]).max()))
        for side, (_, taken) in enumerate(sides):
            one[side].append(taken)
    print(
        f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), transformers "
        f"{transformers.__version__}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| from text | routerjax | torch | torch / routerjax |")
    print("|---|---|---|---|")
    print(row(f"{len(prompts)} prompts in {len(batches)} batches", *seconds, unit="s"))
    print(row("one prompt", *one, unit="ms"))
    compiled = first - float(np.median(seconds[0])), first_single - sum(one[0])
    print(f"\nCompiling took {compiled[0]:.1f} s once for the batches and {compiled[1]:.1f} s for single prompts.")
    print(f"The win probabilities differ by at most {difference:.1e}.")
    if not difference <= TOLERANCE:
        raise SystemExit(f"the win probabilities differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
