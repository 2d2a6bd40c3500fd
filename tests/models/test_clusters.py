"""Clusters: the mean label of the cluster, against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from routerjax import families, features, models, scoring
from routerjax.prompts import prompt_ids
from routerjax.typing import PreferenceBatch, Variables

GIVEN = features.GivenFeaturizer(source="e.npy", width=6, fingerprint="f")
NUM_PROMPTS, PLANTED = 400, 8


@pytest.fixture(scope="module")
def battles() -> PreferenceBatch:
    """A battle of models 0 and 1 on each prompt of 8 clusters, whose chances differ."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(PLANTED, size=NUM_PROMPTS)
    centers = rng.standard_normal((PLANTED, 6))
    embedding = centers[cluster] + 0.1 * rng.standard_normal((NUM_PROMPTS, 6))
    wins = rng.random(NUM_PROMPTS) < np.where(cluster % 2, 0.9, 0.1)
    return PreferenceBatch(
        query={
            "embedding": embedding.astype(np.float32),
            "prompt_id": prompt_ids([str(row) for row in range(NUM_PROMPTS)]),
        },
        query_index=np.arange(NUM_PROMPTS, dtype=np.int32),
        model_a=np.zeros(NUM_PROMPTS, np.int32),
        model_b=np.ones(NUM_PROMPTS, np.int32),
        outcome=np.stack([wins, 0 * wins, ~wins], axis=1).astype(np.float32),
        weight=np.ones(NUM_PROMPTS, np.float32),
    )


def remember(battles: PreferenceBatch, **attributes: object) -> tuple[models.Clusters, Variables]:
    module = families.CLUSTERS.make_module(num_outputs=2, attributes=attributes, featurizer=GIVEN)
    return module, {"memory": families.CLUSTERS.remember(module, battles, None)}


def test_the_win_probability_is_the_mean_label_of_the_cluster(battles: PreferenceBatch) -> None:
    module, variables = remember(battles, num_clusters=PLANTED, smoothing=1e-4)
    unit = battles.query["embedding"] / np.linalg.norm(battles.query["embedding"], axis=1, keepdims=True)
    reference = KMeans(PLANTED, random_state=0).fit(unit)
    label = np.asarray(battles.label)
    mean = np.asarray([label[reference.labels_ == cluster].mean() for cluster in range(PLANTED)])
    queries = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    score = jax.jit(scoring.make_score_fn(module, strong=0, weak=1))
    expected = mean[reference.predict(queries / np.linalg.norm(queries, axis=1, keepdims=True))]
    np.testing.assert_allclose(score(variables, {"embedding": queries}), expected, atol=1e-3)


def test_a_prompt_does_not_see_its_own_battle(battles: PreferenceBatch) -> None:
    module, variables = remember(battles, num_clusters=1, smoothing=1e-4)
    score = jax.jit(scoring.make_score_fn(module, strong=0, weak=1))
    label = np.asarray(battles.label)
    others = (label.sum() - label) / (NUM_PROMPTS - 1)
    np.testing.assert_allclose(score(variables, battles.query), others, atol=1e-4)


def test_the_number_of_clusters_is_chosen_by_validation(battles: PreferenceBatch) -> None:
    _, variables = remember(battles)
    chosen = len(variables["memory"]["centroid"])
    assert PLANTED <= chosen <= 2 * PLANTED
    assert variables["memory"]["cluster_battle_count"].sum() == 2 * NUM_PROMPTS
    always = battles._replace(outcome=np.tile(np.float32([0, 1, 0]), (NUM_PROMPTS, 1)))
    assert len(remember(always)[1]["memory"]["centroid"]) == 1  # nothing is gained by more
