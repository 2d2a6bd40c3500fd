"""Ratings of battles against scikit-learn; tiers against every possible split."""

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from routerjax import InputError, bradley_terry, data, models


def random_battles(num_models: int, count: int, seed: int) -> data.Preferences:
    """Hard, soft and tied battles of many weights between models of known strength."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 1, num_models)
    model_a = rng.integers(num_models, size=count)
    model_b = (model_a + rng.integers(1, num_models, size=count)) % num_models
    chance = 1 / (1 + np.exp(strength[model_b] - strength[model_a]))
    hard = np.where(rng.random(count) < chance, 0, 2)
    hard[rng.random(count) < 0.2] = 1
    outcome = np.eye(3)[hard]
    is_soft = rng.random(count) < 0.3
    outcome[is_soft] = rng.dirichlet([1, 1, 1], is_soft.sum())
    return data.Preferences(
        unique_prompts=tuple(f"prompt {row}" for row in range(count)),
        prompt_index=np.arange(count),
        model_a=model_a,
        model_b=model_b,
        outcome=outcome,
        weight=rng.gamma(2, 1, count),
        models=tuple(f"model {row:02}" for row in range(num_models)),
    )


def by_scikit_learn(battles: data.Preferences) -> np.ndarray:
    """A soft label is two examples, one of each class, weighted by it."""
    design = np.eye(len(battles.models))[battles.model_a] - np.eye(len(battles.models))[battles.model_b]
    label, weight = battles.label.astype(np.float64), battles.weight.astype(np.float64)
    model = LogisticRegression(fit_intercept=False, C=1e10, tol=1e-10, max_iter=1000)
    model.fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(battles)),
        sample_weight=np.concatenate([weight * label, weight * (1 - label)]),
    )
    return model.coef_[0] - model.coef_[0].mean()


def by_brute_force(ratings: np.ndarray, num_tiers: int) -> np.ndarray:
    order = np.argsort(-ratings)

    def cost(cuts: tuple[int, ...]) -> float:
        return sum(part.var() for part in np.split(ratings[order].astype(np.float64), cuts))

    cuts = min(itertools.combinations(range(1, len(ratings)), num_tiers - 1), key=cost)
    tier = np.empty(len(ratings), int)
    for index, members in enumerate(np.split(order, cuts)):
        tier[members] = index
    return tier


def three_models(**changes: object) -> data.Preferences:
    columns = {
        "prompts": ["p", "q", "r", "s"],
        "model_a": ["x", "x", "z", "y"],
        "model_b": ["y", "y", "x", "z"],
        "outcome": np.asarray([[1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5], [0, 0, 1]]),
        "weight": np.asarray([1, 4, 2, 3]),
    }
    return data.Preferences.from_names(**columns | changes)


def rated_tiers(battles: data.Preferences, num_tiers: int, **prior: float) -> tuple[np.ndarray, np.ndarray]:
    columns = (battles.model_a, battles.model_b, battles.label, battles.weight)
    return bradley_terry.rated_tiers(*columns, models=battles.models, num_tiers=num_tiers, **prior)


def win_matrix(battles: data.Preferences) -> np.ndarray:
    columns = (battles.model_a, battles.model_b, battles.label, battles.weight)
    return bradley_terry.win_matrix(*columns, num_models=len(battles.models))


def test_win_matrix_by_hand() -> None:
    # x against y: one win and half of a tie of weight 4; z against x: .2 + .15 of 2; z beats y at 3.
    expected = [[0, 3, 1.3], [2, 0, 0], [0.7, 3, 0]]
    np.testing.assert_allclose(win_matrix(three_models()), expected, rtol=1e-6)


def test_win_matrix_knows_no_sides() -> None:
    battles = random_battles(5, 200, 0)
    np.testing.assert_allclose(win_matrix(data.swap_sides(battles, seed=1)), win_matrix(battles), rtol=1e-6)
    assert win_matrix(battles).sum() == pytest.approx(battles.weight.sum(), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ratings_against_logistic_regression(seed: int) -> None:
    battles = random_battles(8, 500, seed)
    ratings, tier = rated_tiers(battles, 3, prior=0.0)
    np.testing.assert_allclose(ratings, by_scikit_learn(battles), atol=1e-3)
    assert (ratings.dtype, tier.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("num_tiers", [1, 2, 4, 10, 12])
def test_tiers_against_every_split(num_tiers: int) -> None:
    ratings, tier = rated_tiers(random_battles(12, 900, 5), num_tiers)
    np.testing.assert_array_equal(tier, by_brute_force(ratings, num_tiers))
    # Contiguous, strongest first, none empty.
    assert (np.diff(tier[np.argsort(-ratings)]) >= 0).all()
    assert set(tier.tolist()) == set(range(num_tiers))


def test_the_prior_reaches_the_fit() -> None:
    always = three_models(outcome=np.asarray([[1, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]))
    spread = [np.ptp(rated_tiers(always, 2, prior=prior)[0]) for prior in (1e-4, 1.0)]
    assert spread[0] > spread[1] > 0


def test_models_that_cannot_be_compared_are_refused() -> None:
    apart = data.Preferences.from_names(
        ["p", "q", "r"], ["a", "c", "b"], ["b", "d", "a"], np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    )
    with pytest.raises(InputError, match=r"2 of 4 models cannot be rated on one scale .*: c, d; .*num_tiers=0"):
        rated_tiers(apart, 2)
    joined = data.concatenate([apart, data.Preferences.from_names(["s"], ["d"], ["a"], np.asarray([[0, 0, 1]]))])
    assert rated_tiers(joined, 2)[1].shape == (4,)


def test_a_model_without_battles_is_refused() -> None:
    battles = three_models(models=["w", "x", "y", "z"])
    with pytest.raises(InputError, match=r"1 of 4 models cannot .*: w; leave their battles out"):
        rated_tiers(battles, 2)
    assert rated_tiers(battles.without_unused_models(), 2)[1].shape == (3,)


def test_a_battle_of_no_weight_connects_nothing() -> None:
    with pytest.raises(InputError, match=r"1 of 3 models cannot be rated on one scale .*: z;"):
        rated_tiers(three_models(weight=np.asarray([1, 1, 0, 0])), 2)


@pytest.mark.parametrize("num_tiers", [0, 4])
def test_the_number_of_tiers(num_tiers: int) -> None:
    with pytest.raises(InputError, match=r"num_tiers must lie in 1\.\.3"):
        rated_tiers(three_models(), num_tiers)


@pytest.mark.parametrize("num_tiers", [1, 3, 5])
def test_tiers_of_battles_and_of_a_batch_of_them_are_the_same(num_tiers: int) -> None:
    battles = random_battles(6, 300, 1)
    batch = data.to_batch(battles, np.zeros((len(battles.unique_prompts), 2), np.float32))
    tier = models.battle_tiers(batch, num_models=6, num_tiers=num_tiers)
    np.testing.assert_array_equal(tier, rated_tiers(battles, num_tiers)[1])
