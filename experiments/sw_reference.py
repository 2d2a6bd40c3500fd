r"""Similarity-weighted ranking against a float64 reference, on real battles and 200 real queries.

    python experiments/sw_reference.py DATA

DATA as in ``mf_golden.py``. The reference is written from the method's description: cosines, weights and sums in
float64 by numpy; the weighted Bradley-Terry fit by scikit-learn's unpenalised logistic regression, run to convergence.
Battles within one tier count nothing in either. Prints the largest difference of win probability between any two tiers,
and between the routed pair, under both normalisations. A minute on two CPU cores once the prompts are encoded.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from mf_golden import get_config
from sklearn.linear_model import LogisticRegression

from routerjax import models
from routerjax.config import override
from routerjax.data import load_benchmark, to_batch
from routerjax.features import EmbeddingCache, open_featurizer
from routerjax.pipeline import load_preferences

NUM_TIERS, NUM_QUERIES, GAMMA = 10, 200, 10.0
TOLERANCE = 1e-3
BLOCK = 1024  # prompts whose cosines with all others are held at a time


def reference_ratings(wins: np.ndarray) -> np.ndarray:
    """Ratings of the tiers from weighted wins ``[winner, loser]``."""
    winner, loser = np.nonzero(wins)
    feature = np.eye(NUM_TIERS)[winner] - np.eye(NUM_TIERS)[loser]
    # Each win once as it is and once read backwards, or there would be one class alone.
    fit = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=100_000)
    fit.fit(
        np.concatenate([feature, -feature]),
        np.repeat([1, 0], len(winner)),
        sample_weight=np.tile(wins[winner, loser] / wins.sum(), 2),
    )
    return fit.coef_[0]


def pairwise(ratings: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(ratings[..., None, :] - ratings[..., :, None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    root = parser.parse_args().data
    config = override(get_config(), [f"data.root={root}"])
    battles = load_preferences(config.data)
    prompts = load_benchmark("mmlu", root / "routellm_evals").prompts
    queries = [prompts[row] for row in np.random.default_rng(0).choice(len(prompts), NUM_QUERIES, replace=False)]
    with EmbeddingCache() as cache:
        featurizer = open_featurizer(config.features)
        embedding = featurizer.query(battles.unique_prompts, cache=cache)["embedding"]
        query = featurizer.query(queries, cache=cache)["embedding"]
    batch = to_batch(battles, embedding)
    tier = models.battle_tiers(batch, num_models=len(battles.models), num_tiers=NUM_TIERS)
    memory = models.similarity_weighted_memory(batch, tier=tier)

    tier_a, tier_b = tier[battles.model_a], tier[battles.model_b]
    between = tier_a != tier_b
    prompt, tier_a, tier_b, label = (
        battles.prompt_index[between],
        tier_a[between],
        tier_b[between],
        battles.label[between],
    )
    weight = battles.weight[between].astype(np.float64)
    used = np.unique(prompt)
    known = embedding.astype(np.float64)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    own = query.astype(np.float64)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    cosine = known @ own.T  # [prompts, queries]
    largest = np.concatenate(
        [(known[start : start + BLOCK] @ known[used].T).max(axis=1) for start in range(0, len(known), BLOCK)]
    )
    similarity = {"query": cosine / cosine[used].max(axis=0), "train": cosine / largest[:, None]}
    strong, weak = (tier[battles.models.index(name)] for name in (config.router.strong, config.router.weak))
    print(f"{len(battles)} battles, {between.sum()} between the {NUM_TIERS} tiers, on {len(used)} prompts\n")
    print("| normalisation | largest difference, any two tiers | of the routed pair |")
    print("|---|---|---|")
    for normalize, values in similarity.items():
        ratings = np.empty((NUM_QUERIES, NUM_TIERS))
        for row in range(NUM_QUERIES):
            scaled = weight * GAMMA ** (1 + values[prompt, row])
            wins = np.zeros((NUM_TIERS, NUM_TIERS))
            np.add.at(wins, (tier_a, tier_b), scaled * label)
            np.add.at(wins, (tier_b, tier_a), scaled * (1 - label))
            ratings[row] = reference_ratings(wins)
        module = models.SimilarityWeighted(
            num_models=len(battles.models), num_tiers=NUM_TIERS, gamma=GAMMA, normalize=normalize
        )
        scores = np.asarray(module.apply({"memory": memory}, {"embedding": jnp.asarray(query)}), np.float64)
        of_tier = np.stack([scores[:, np.flatnonzero(tier == one)[0]] for one in range(NUM_TIERS)], axis=1)
        difference = np.abs(pairwise(of_tier) - pairwise(ratings))
        print(f"| {normalize} | {difference.max():.1e} | {difference[:, strong, weak].max():.1e} |")
        if not difference.max() <= TOLERANCE:
            raise SystemExit(f"the win probabilities differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
