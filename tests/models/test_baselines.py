"""Nearest neighbours: the mean label of the neighbours."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors as SklearnNeighbors

from routerjax import InputError, families, models, scoring
from routerjax.prompts import prompt_ids
from routerjax.typing import PreferenceBatch, Variables


@functools.partial(jax.jit, static_argnums=0)
def apply(module: nn.Module, variables: Variables, query: dict) -> jax.Array:
    return module.apply(variables, query)


remember = jax.jit(models.nearest_neighbors_memory, static_argnames="num_models")


def pair_battles(num_prompts: int = 60, width: int = 5) -> PreferenceBatch:
    """Make one battle of models 0 and 1 on each prompt, half of them with sides exchanged."""
    rng = np.random.default_rng(0)
    outcome = np.eye(3)[rng.integers(3, size=num_prompts)]
    swapped = rng.random(num_prompts) < 0.5
    return PreferenceBatch(
        query={
            "embedding": rng.standard_normal((num_prompts, width)).astype(np.float32),
            "prompt_id": prompt_ids([str(row) for row in range(num_prompts)]),
        },
        query_index=np.arange(num_prompts, dtype=np.int32),
        model_a=swapped.astype(np.int32),
        model_b=(~swapped).astype(np.int32),
        outcome=np.where(swapped[:, None], outcome[:, ::-1], outcome).astype(np.float32),
        weight=np.ones(num_prompts, np.float32),
    )


@pytest.mark.parametrize("k", [1, 7])
def test_nearest_neighbors_is_the_mean_label(k: int) -> None:
    battles = pair_battles()
    memory = remember(battles, num_models=2)
    module = models.NearestNeighbors(num_models=2, k=k, smoothing=1e-4)
    embedding = np.random.default_rng(1).standard_normal((11, 5)).astype(np.float32)
    score = jax.jit(scoring.make_score_fn(module, strong=0, weak=1))
    win_prob = score({"memory": memory}, {"embedding": embedding})
    label = np.where(np.asarray(battles.model_a) == 0, battles.label, 1 - np.asarray(battles.label))
    neighbors = SklearnNeighbors(n_neighbors=k, metric="cosine").fit(np.asarray(battles.query["embedding"]))
    expected = label[neighbors.kneighbors(embedding, return_distance=False)].mean(axis=1)
    np.testing.assert_allclose(win_prob, expected, atol=1e-3)


def test_a_prompt_is_not_its_own_neighbor() -> None:
    battles = pair_battles()
    memory = remember(battles, num_models=2)
    module = models.NearestNeighbors(num_models=2, k=1, smoothing=1e-4)
    score = jax.jit(scoring.make_score_fn(module, strong=0, weak=1))
    label = np.where(np.asarray(battles.model_a) == 0, battles.label, 1 - np.asarray(battles.label))
    scores = score({"memory": memory}, {"embedding": battles.query["embedding"]})
    np.testing.assert_allclose(scores, label, atol=1e-3)
    embedding = np.asarray(battles.query["embedding"])
    second = SklearnNeighbors(n_neighbors=2, metric="cosine").fit(embedding).kneighbors(embedding)[1][:, 1]
    np.testing.assert_allclose(score({"memory": memory}, battles.query), label[second], atol=1e-3)


def test_a_model_without_battles_nearby_falls_back_on_its_prior() -> None:
    battles = pair_battles()
    memory = remember(battles, num_models=3)
    module = models.NearestNeighbors(num_models=3, k=5)
    scores = np.asarray(apply(module, {"memory": memory}, {"embedding": np.ones((1, 5), np.float32)}))
    np.testing.assert_allclose(scores[0, 2], np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, -1.0, np.nan, np.inf])
def test_a_smoothing_without_finite_scores_is_refused(smoothing: float) -> None:
    with pytest.raises(InputError, match="smoothing of nearest neighbours must be positive and finite, got"):
        models.NearestNeighbors(num_models=2, smoothing=smoothing)


def test_more_neighbours_than_prompts_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """All prompts would have the same scores."""
    battles = pair_battles(num_prompts=6)
    scores = {}
    for k in (3, 6):
        module = models.NearestNeighbors(num_models=2, k=k)
        memory = families.KNN.remember(module, battles, ("a", "b"))
        query = {"embedding": battles.query["embedding"]}  # of prompts that are not known as its own
        scores[k] = np.asarray(apply(module, {"memory": memory}, query))[:, 0]
        assert ("all 6 prompts that knn remembers" in caplog.text) == (k == 6)
    assert np.ptp(scores[3]) > 0.01
    assert np.ptp(scores[6]) < 1e-6
