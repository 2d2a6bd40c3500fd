"""Tiers and win rates of RouteLLM's similarity-weighted ranking on a small arena: ``routellm_sw.json``.

    git clone https://github.com/lm-sys/RouteLLM
    python tests/golden/routellm_sw.py RouteLLM

runs RouteLLM's ``compute_elo_mle_with_tie`` and ``compute_tiers`` (commit cb0b9d9, with pandas and scikit-learn) on
:func:`arena`. Battles within a tier are dropped before its win rates are computed: there its code lets them pull the
tier down, which ours does not repeat.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_suffix(".json")
MODELS = ("gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1", *(f"model-{number:02}" for number in range(10)))
OUTCOMES = ("model_a", "tie", "model_b")
NUM_TIERS, WIDTH = 5, 8


def arena() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """600 battles as columns, the embedding of each battle's prompt, and the embeddings of 20 queries."""
    rng = np.random.default_rng(3)
    strength = np.array([2.0, 0.2, 1.4, 1.3, 1.1, 0.9, 0.3, 0.1, -0.4, -0.5, -1.6, -2.9])
    a = rng.integers(len(MODELS), size=600)
    b = (a + rng.integers(1, len(MODELS), size=600)) % len(MODELS)
    embedding = (rng.standard_normal((620, WIDTH)) + 0.5).astype(np.float32)
    margin = strength[a] - strength[b] + embedding[:600, 0] * (strength[a] - strength[b])
    outcome = np.where(rng.random(600) < 0.2, 1, np.where(rng.random(600) < 1 / (1 + np.exp(-margin)), 0, 2))
    names = np.asarray(MODELS)
    columns = {"model_a": names[a], "model_b": names[b], "winner": np.asarray(OUTCOMES)[outcome]}
    return columns, embedding[:600], embedding[600:]


def main(checkout: str) -> None:
    import pandas as pd

    os.environ.setdefault("OPENAI_API_KEY", "unused")  # its module makes a client when it is imported
    sys.path.insert(0, checkout)
    from routellm.routers.similarity_weighted import utils

    columns, embedding, queries = arena()
    battles = pd.DataFrame({name: list(column) for name, column in columns.items()})
    tier = utils.compute_tiers(utils.compute_elo_mle_with_tie(battles), num_tiers=NUM_TIERS)
    battles["model_a"], battles["model_b"] = battles["model_a"].map(tier), battles["model_b"].map(tier)
    between = (battles["model_a"] != battles["model_b"]).to_numpy()
    battles, embedding = battles[between].reset_index(drop=True), embedding[between]
    win_rates = []
    for query in queries:
        similarity = embedding @ query / (np.linalg.norm(embedding, axis=1) * np.linalg.norm(query))
        weight = 10 * 10 ** (similarity / similarity.max())
        elo = utils.compute_elo_mle_with_tie(battles, sample_weight=weight)
        win_rates.append(1 / (1 + 10 ** ((elo[tier[MODELS[1]]] - elo[tier[MODELS[0]]]) / 400)))
    golden = {"tier": {name: int(tier[name]) for name in MODELS}, "win_rate": [round(rate, 6) for rate in win_rates]}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
