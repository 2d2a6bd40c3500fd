"""Similarity-weighted ranking against a float64 reference, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from routerjax import InputError, models
from routerjax.prompts import prompt_ids
from routerjax.typing import PreferenceBatch, Variables

NUM_MODELS, WIDTH = 6, 8
TIER = np.asarray([0, 1, 0, 2, 1, 3])


def random_battles(num_prompts: int = 80, num_battles: int = 300, *, seed: int = 0) -> PreferenceBatch:
    rng = np.random.default_rng(seed)
    model_a = rng.integers(NUM_MODELS, size=num_battles)
    model_b = (model_a + rng.integers(1, NUM_MODELS, size=num_battles)) % NUM_MODELS
    return PreferenceBatch(
        query={
            "embedding": (rng.standard_normal((num_prompts, WIDTH)) + 0.5).astype(np.float32),
            "prompt_id": prompt_ids([str(row) for row in range(num_prompts)]),
        },
        query_index=rng.integers(num_prompts, size=num_battles),
        model_a=model_a,
        model_b=model_b,
        outcome=np.eye(3, dtype=np.float32)[rng.integers(3, size=num_battles)],
        weight=rng.uniform(0.5, 2, size=num_battles).astype(np.float32),
    )


def select(battles: PreferenceBatch, rows: np.ndarray) -> PreferenceBatch:
    kept = {name: getattr(battles, name)[rows] for name in ("query_index", "model_a", "model_b", "outcome", "weight")}
    return battles._replace(**kept)


@functools.partial(jax.jit, static_argnums=0)
def apply(
    module: models.SimilarityWeighted, memory: Variables, query: dict, gamma: float = models.SimilarityWeighted.gamma
) -> jax.Array:
    """Scores; gamma is an argument, so that one program is compiled for all of them."""
    return module.clone(gamma=gamma).apply({"memory": memory}, query)


def between_tiers(battles: PreferenceBatch) -> np.ndarray:
    return TIER[np.asarray(battles.model_a)] != TIER[np.asarray(battles.model_b)]


def reference_ratings(battles: PreferenceBatch, query: np.ndarray, *, gamma: float, normalize: str) -> np.ndarray:
    """Ratings of the tiers in float64, from the method's description, by scikit-learn's unpenalised regression."""
    battles = select(battles, between_tiers(battles))
    used = np.unique(battles.query_index)
    memory = np.asarray(battles.query["embedding"], np.float64)
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    query = query.astype(np.float64) / np.linalg.norm(query)
    similarity = memory @ query
    if normalize == "query":
        similarity /= similarity[used].max()
    else:
        similarity /= (memory[used] @ memory.T).max(axis=0)
    weight = np.asarray(battles.weight, np.float64) * gamma ** (1 + similarity[np.asarray(battles.query_index)])
    label = np.asarray(battles.label, np.float64)
    feature = np.zeros((len(label), TIER.max() + 1))
    rows = np.arange(len(label))
    feature[rows, TIER[np.asarray(battles.model_a)]] = 1
    feature[rows, TIER[np.asarray(battles.model_b)]] = -1
    # A soft label is a win and a loss, each with its share of the weight.
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fit.fit(
        np.concatenate([feature, feature]),
        np.repeat([1, 0], len(label)),
        sample_weight=np.concatenate([weight * label, weight * (1 - label)]),
    )
    return fit.coef_[0]


@pytest.mark.parametrize("normalize", ["query", "train"])
@pytest.mark.parametrize("gamma", [10.0, 2.0])
def test_equals_a_float64_reference(normalize: str, gamma: float) -> None:
    battles = random_battles()
    memory = models.similarity_weighted_memory(battles, tier=TIER)
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4, normalize=normalize)
    query = np.random.default_rng(1).standard_normal((12, WIDTH)).astype(np.float32)
    scores = np.asarray(apply(module, memory, {"embedding": query}, gamma), np.float64)
    for row in range(len(query)):
        ratings = reference_ratings(battles, query[row], gamma=gamma, normalize=normalize)
        expected = 1 / (1 + np.exp(-(ratings[TIER][:, None] - ratings[TIER][None, :])))
        win_prob = 1 / (1 + np.exp(-(scores[row][:, None] - scores[row][None, :])))
        np.testing.assert_allclose(win_prob, expected, atol=1e-3)


def test_battles_within_a_tier_change_nothing() -> None:
    battles = random_battles()
    between = between_tiers(battles)
    assert not between.all()
    queries = {"embedding": battles.query["embedding"][:12] * 2}
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4)
    with_all, without = (
        np.asarray(apply(module, models.similarity_weighted_memory(stored, tier=TIER), queries))
        for stored in (battles, select(battles, between))
    )
    np.testing.assert_array_equal(with_all, without)
    np.testing.assert_array_equal(with_all[:, 0], with_all[:, 2])  # models of one tier


def test_models_as_columns_when_there_are_no_tiers() -> None:
    battles = random_battles()
    tier = models.battle_tiers(battles, num_models=NUM_MODELS, num_tiers=0)
    np.testing.assert_array_equal(tier, np.arange(NUM_MODELS))
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=0)
    memory = models.similarity_weighted_memory(battles, tier=tier)
    scores = apply(module, memory, {"embedding": battles.query["embedding"][:3]})
    assert scores.shape == (3, NUM_MODELS)
    assert len(np.unique(np.asarray(scores[0]))) == NUM_MODELS


def test_tiers_of_battles_put_the_strongest_first() -> None:
    rng = np.random.default_rng(0)
    strength = np.asarray([0.0, 3.0, 0.1, 2.9])
    a = rng.integers(4, size=4000)
    b = (a + rng.integers(1, 4, size=4000)) % 4
    won = rng.random(4000) < 1 / (1 + np.exp(strength[b] - strength[a]))
    outcome = np.stack([won, np.zeros(4000), ~won], axis=1)
    battles = PreferenceBatch({}, np.zeros(4000, int), a, b, outcome, np.ones(4000))
    np.testing.assert_array_equal(models.battle_tiers(battles, num_models=4, num_tiers=2), [1, 0, 1, 0])


def test_tiers_need_battles_that_connect_all_models() -> None:
    battles = random_battles()
    low = np.asarray([0, 1, 2])
    apart = np.isin(battles.model_a, low) == np.isin(battles.model_b, low)
    names = ["a", "b", "c", "gamma", "delta", "epsilon"]
    with pytest.raises(InputError, match=r"3 of 6 models cannot be rated on one scale .*: gamma, delta, epsilon;"):
        models.battle_tiers(select(battles, apart), num_models=NUM_MODELS, num_tiers=3, names=names)
    # Where every model is a tier of its own, none has to be rated beforehand.
    tier = models.battle_tiers(select(battles, apart), num_models=NUM_MODELS, num_tiers=0)
    np.testing.assert_array_equal(tier, np.arange(NUM_MODELS))


def test_a_query_does_not_see_its_own_battles() -> None:
    battles = random_battles()
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4)
    query = {name: leaf[5:6] for name, leaf in battles.query.items()}
    seen = apply(module, models.similarity_weighted_memory(battles, tier=TIER), query)
    others = select(battles, np.asarray(battles.query_index) != 5)
    without = apply(module, models.similarity_weighted_memory(others, tier=TIER), {"embedding": query["embedding"]})
    np.testing.assert_allclose(seen, without, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [10.0, 1e30])
@pytest.mark.parametrize("normalize", ["query", "train"])
def test_a_query_unlike_everything_gets_about_the_overall_ranking(gamma: float, normalize: str) -> None:
    battles = random_battles()
    direction = np.eye(WIDTH, dtype=np.float32)[0]
    # All prompts about one direction; the query is its opposite.
    battles.query["embedding"] = direction + 1e-4 * battles.query["embedding"]
    memory = models.similarity_weighted_memory(battles, tier=TIER)
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4, normalize=normalize)
    opposite = np.asarray(apply(module, memory, {"embedding": -direction[None, :]}, gamma))
    overall = np.asarray(apply(module, memory, {"embedding": direction[None, :]}, 1.0))
    assert np.ptp(overall) > 0.1
    np.testing.assert_allclose(opposite, overall, atol=1e-3)


def test_a_query_with_no_battles_but_its_own_prefers_nobody() -> None:
    one = random_battles(num_prompts=1, num_battles=20)
    memory = models.similarity_weighted_memory(one, tier=TIER)
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4)
    np.testing.assert_array_equal(apply(module, memory, one.query), np.zeros((1, NUM_MODELS)))


def test_many_queries_in_chunks_score_as_each_alone() -> None:
    battles = random_battles()
    memory = models.similarity_weighted_memory(battles, tier=TIER)
    module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4)
    query = np.random.default_rng(2).standard_normal((150, WIDTH)).astype(np.float32)
    together = np.asarray(apply(module, memory, {"embedding": query}))
    assert together.shape == (150, NUM_MODELS)
    for start in (0, 63, 149):
        alone = apply(module, memory, {"embedding": query[start : start + 1]})
        np.testing.assert_allclose(together[start : start + 1], alone, rtol=1e-4, atol=1e-4)


def test_gamma_has_the_gradient_of_finite_differences() -> None:
    battles = random_battles()
    memory = models.similarity_weighted_memory(battles, tier=TIER)
    query = {"embedding": battles.query["embedding"][:4] + 1}

    def margin(gamma: jax.Array) -> jax.Array:
        module = models.SimilarityWeighted(num_models=NUM_MODELS, num_tiers=4, gamma=gamma)
        scores = module.apply({"memory": memory}, query)
        return jnp.sum(scores[:, 0] - scores[:, 5])

    (_, derivative), (low, _), (high, _) = map(jax.jit(jax.value_and_grad(margin)), (5.0, 4.5, 5.5))
    expected = (np.asarray(high) - low) / 1.0
    np.testing.assert_allclose(derivative, expected, rtol=2e-2)


def test_no_battle_between_tiers_is_refused() -> None:
    with pytest.raises(InputError, match="no battle between two tiers"):
        models.similarity_weighted_memory(random_battles(), tier=np.zeros(NUM_MODELS, int))
