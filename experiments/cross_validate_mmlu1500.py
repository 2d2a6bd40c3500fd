"""How much the 1,500 MMLU questions should weigh among 79,424 other battles: 5-fold cross-validation inside the 1,500.

    python experiments/cross_validate_mmlu1500.py DATA > experiments/results/cross_validation_mmlu1500.md

DATA as in ``mf_golden.py``. Each fold trains on the other battles and four fifths of the 1,500, and measures APGR on
the remaining fifth; the 12,537 test questions are never touched. The first run encodes about 15,000 prompts (5 minutes
on two cores, cached afterwards); a row of the table then takes about half a minute.
"""

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
from mf_golden_mmlu1500 import GOLDEN, STRONG, WEAK, get_config, with_choice

from routerjax import losses, metrics, training
from routerjax.config import ExperimentConfig
from routerjax.data import (
    ROUTELLM_STRONG,
    ROUTELLM_WEAK,
    Preferences,
    load_benchmark,
    smallest_by_hash,
    to_batch,
)
from routerjax.features import EmbeddingCache
from routerjax.pipeline import embed, load_preferences
from routerjax.router import make_module
from routerjax.scoring import make_score_fn

WEIGHTS, NOISES = (1.0, 5.0, 20.0, 60.0, 200.0), (0.0, 0.1, 0.2)
FOLDS = 5


def fold_apgr(
    config: ExperimentConfig, battles: Preferences, rows: dict[str, int], embedding: np.ndarray, held_out: set[str]
) -> np.ndarray:
    """Win probabilities of the held-out prompts, in sorted order, after training on all battles on other prompts."""
    train = battles.select(np.asarray([prompt not in held_out for prompt in battles.prompts]))
    module = make_module("mf", num_models=len(train.models), attributes=config.router.attributes)
    batch = to_batch(train, embedding[[rows[prompt] for prompt in train.unique_prompts]])
    with tempfile.TemporaryDirectory() as directory:
        variables = training.fit(
            module,
            batch,
            None,
            loss=losses.preference_loss,
            optimizer=config.optimizer,
            training=dataclasses.replace(config.training, checkpoint_every=config.training.epochs),
            directory=directory,
            progress=False,
        ).variables
    score = make_score_fn(module, strong=train.models.index(STRONG), weak=train.models.index(WEAK))
    return np.asarray(score(variables, {"embedding": embedding[[rows[prompt] for prompt in sorted(held_out)]]}))


def main(data_root: str) -> None:
    base = get_config()
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, root=data_root))
    benchmark = load_benchmark("mmlu", Path(data_root) / GOLDEN.root)
    golden, _ = smallest_by_hash(benchmark, GOLDEN.num_prompts)
    quality = {
        prompt: (strong, weak)
        for prompt, strong, weak in zip(
            golden.prompts, golden.quality[ROUTELLM_STRONG], golden.quality[ROUTELLM_WEAK], strict=True
        )
    }
    prompts = load_preferences(base.data).unique_prompts
    with EmbeddingCache() as cache:
        embedding, _ = embed(prompts, base.features, root=Path(data_root), cache=cache)
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    shuffled = np.random.default_rng(0).permutation(sorted(quality))
    folds = [set(shuffled[fold::FOLDS].tolist()) for fold in range(FOLDS)]

    print("| weight | noise | APGR, mean of 5 folds | folds |\n|---|---|---|---|")
    for weight, noise_std in itertools.product(WEIGHTS, NOISES):
        config = with_choice(base, weight=weight, noise_std=noise_std)
        battles = load_preferences(config.data)
        found = []
        for held_out in folds:
            win_prob = fold_apgr(config, battles, rows, embedding, held_out)
            strong, weak = np.asarray([quality[prompt] for prompt in sorted(held_out)]).T
            found.append(metrics.apgr(metrics.cost_quality_curve(win_prob, strong, weak)))
        each = " ".join(f"{apgr:.3f}" for apgr in found)
        print(f"| {weight:g} | {noise_std:g} | {np.mean(found):.4f} | {each} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
