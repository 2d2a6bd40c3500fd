"""Ratings against scipy and scikit-learn; tiers against brute force."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.optimize import minimize
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression

from routerjax import bradley_terry
from routerjax.errors import InputError


def random_wins(num_models, seed, *, scale=30.0):
    """Every model beats and loses to every other at least a little, so that the maximum likelihood is finite."""
    rng = np.random.default_rng(seed)
    wins = rng.gamma(1.0, scale, (num_models, num_models)) + 0.5
    np.fill_diagonal(wins, 0.0)
    return wins


def by_scipy(wins):
    def loss(ratings):
        return -(wins * log_expit(ratings[:, None] - ratings[None, :])).sum() / wins.sum()

    ratings = minimize(loss, np.zeros(len(wins)), method="BFGS", options={"gtol": 1e-9}).x
    return ratings - ratings.mean()


def by_scipy_newton(wins):
    """Exact where some models have far fewer battles than others."""

    def chance(free):
        ratings = np.append(0.0, free)
        return 1 / (1 + np.exp(ratings[None, :] - ratings[:, None]))

    def loss(free):
        return -(wins * np.log(chance(free))).sum()

    def gradient(free):
        missed = wins * (1 - chance(free))
        return (missed.sum(axis=0) - missed.sum(axis=1))[1:]

    def hessian(free):
        curvature = (wins + wins.T) * chance(free) * (1 - chance(free))
        return (np.diag(curvature.sum(axis=1)) - curvature)[1:, 1:]

    start = np.zeros(len(wins) - 1)
    free = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-11}).x
    ratings = np.append(0.0, free)
    return ratings - ratings.mean()


class TestFit:
    @pytest.mark.parametrize(("num_models", "seed"), [(2, 0), (3, 1), (10, 2), (30, 3)])
    def test_against_scipy(self, num_models, seed):
        wins = random_wins(num_models, seed)
        np.testing.assert_allclose(bradley_terry.fit(wins, prior=0.0), by_scipy(wins), atol=1e-4)

    def test_the_default_prior_changes_little(self):
        wins = random_wins(10, 4)
        np.testing.assert_allclose(bradley_terry.fit(wins), by_scipy(wins), atol=1e-3)

    def test_the_prior_is_ties(self):
        wins = random_wins(8, 5)
        total = (wins + wins.T).sum(axis=0)
        tie = 0.3 * np.minimum.outer(total, total) / 7 / 2 * (1.0 - np.eye(8))
        np.testing.assert_allclose(bradley_terry.fit(wins, prior=0.3), by_scipy(wins + tie), atol=1e-4)

    @pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-6])
    @pytest.mark.parametrize("few", [[0], [0, 1, 2], [3], [5, 6, 7]])
    def test_models_with_few_battles_are_rated_by_them_and_not_by_the_prior(self, few, share):
        scale = np.where(np.isin(np.arange(8), few), share, 1.0)
        wins = random_wins(8, 7) * np.minimum.outer(scale, scale)
        np.testing.assert_allclose(bradley_terry.fit(wins), by_scipy_newton(wins), atol=1e-3)

    @pytest.mark.parametrize("battles", [2e2, 2e4, 2e6])
    def test_a_first_model_that_only_won_is_finite(self, battles):
        wins = np.array([[0, 1, 1], [0, 0, 0.7 * battles], [0, 0.3 * battles, 0]])
        total = (wins + wins.T).sum(axis=0)
        ties = 1e-4 * np.minimum.outer(total, total) / 2 / 2 * (1.0 - np.eye(3))
        np.testing.assert_allclose(bradley_terry.fit(wins), by_scipy_newton(wins + ties), atol=2e-3)

    def test_against_logistic_regression_on_weighted_battles_with_ties(self):
        rng = np.random.default_rng(6)
        num_models, battles = 5, 400
        pairs = np.array([rng.choice(num_models, 2, replace=False) for _ in range(battles)])
        label, weight = rng.choice([0.0, 0.5, 1.0], battles, p=[0.3, 0.2, 0.5]), rng.gamma(2.0, 1.0, battles)
        wins = np.zeros((num_models, num_models))
        np.add.at(wins, (pairs[:, 0], pairs[:, 1]), weight * label)
        np.add.at(wins, (pairs[:, 1], pairs[:, 0]), weight * (1.0 - label))
        # A soft label is two examples, one of each class, weighted by it.
        design = np.eye(num_models)[pairs[:, 0]] - np.eye(num_models)[pairs[:, 1]]
        model = LogisticRegression(fit_intercept=False, C=1e10, tol=1e-10, max_iter=1000)
        model.fit(
            np.concatenate([design, design]),
            np.repeat([1, 0], battles),
            sample_weight=np.concatenate([weight * label, weight * (1.0 - label)]),
        )
        expected = model.coef_[0] - model.coef_[0].mean()
        np.testing.assert_allclose(bradley_terry.fit(wins, prior=0.0), expected, atol=1e-3)

    def test_two_models_have_the_log_odds(self):
        ratings = bradley_terry.fit(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=0.0)
        np.testing.assert_allclose(ratings, [math.log(3.0) / 2, -math.log(3.0) / 2], atol=1e-5)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10_000), st.floats(-6.0, 6.0))
    def test_scale_diagonal_and_gauge(self, seed, exponent):
        wins = random_wins(4, seed)
        ratings = bradley_terry.fit(wins)
        assert float(ratings.sum()) == pytest.approx(0.0, abs=1e-5)
        np.testing.assert_allclose(bradley_terry.fit(wins * 10.0**exponent), ratings, atol=1e-4)
        np.testing.assert_array_equal(bradley_terry.fit(wins + 1000.0 * np.eye(4)), ratings)
        np.testing.assert_allclose(bradley_terry.fit(wins.T), -ratings, atol=1e-4)

    @pytest.mark.parametrize("weight", [1e-6, 1.0, 1e6])
    def test_a_model_that_always_won_has_a_finite_rating(self, weight):
        ratings = bradley_terry.fit(np.array([[0.0, weight], [0.0, 0.0]]))
        assert float(ratings[0] - ratings[1]) == pytest.approx(math.log(2e4 + 1.0), abs=1e-3)

    def test_a_clean_sweep_is_ordered_and_finite(self):
        ratings = np.asarray(bradley_terry.fit(100.0 * np.triu(np.ones((8, 8)), 1)))
        assert np.isfinite(ratings).all()
        assert (np.diff(ratings) < -1.0).all()

    def test_models_that_never_met(self):
        wins = np.zeros((5, 5))
        wins[0, 1], wins[1, 0], wins[2, 3], wins[3, 2] = 3e5, 1e5, 1e5, 1e5
        ratings = np.asarray(bradley_terry.fit(wins))
        # Each island is rated by itself, around the common mean; the model without battles sits at it.
        np.testing.assert_allclose(ratings, [math.log(3.0) / 2, -math.log(3.0) / 2, 0.0, 0.0, 0.0], atol=1e-2)

    def test_no_battles_and_one_model(self):
        np.testing.assert_array_equal(bradley_terry.fit(np.zeros((3, 3))), np.zeros(3))
        np.testing.assert_array_equal(bradley_terry.fit(np.ones((1, 1))), np.zeros(1))

    def test_vmap_and_jit_equal_the_loop(self):
        # Among them a case that needs many steps, beside cases that need few.
        wins = np.stack([*(random_wins(5, seed) for seed in range(6)), np.triu(np.ones((5, 5)), 1)])
        loop = np.stack([bradley_terry.fit(each) for each in wins])
        np.testing.assert_allclose(jax.vmap(bradley_terry.fit)(wins), loop, atol=1e-4)
        np.testing.assert_allclose(jax.jit(jax.vmap(bradley_terry.fit))(wins), loop, atol=1e-4)

    def test_is_differentiated_at_the_solution(self):
        wins = jnp.asarray(random_wins(4, 9, scale=2.0), jnp.float32)
        check_grads(
            lambda each: bradley_terry.fit(jnp.asarray(each), prior=0.01),
            (wins,),
            order=1,
            modes=["fwd", "rev"],
            atol=1e-2,
            rtol=1e-2,
        )

    def test_gradients_in_a_batch_by_finite_differences_of_scipy(self):
        batch = np.stack([random_wins(3, seed, scale=5.0) for seed in (1, 2)])
        gradient = jax.jit(jax.vmap(jax.grad(lambda wins: bradley_terry.fit(wins, prior=0.0)[0])))(jnp.asarray(batch))
        for wins, row in zip(batch, gradient, strict=True):
            for cell in ((0, 1), (2, 0), (1, 2)):
                nudge = np.zeros((3, 3))
                nudge[cell] = 1e-3
                expected = (by_scipy(wins + nudge)[0] - by_scipy(wins - nudge)[0]) / 2e-3
                assert float(row[cell]) == pytest.approx(expected, rel=0.02, abs=1e-3)

    @pytest.mark.parametrize(
        ("wins", "prior", "message"),
        [
            (np.zeros((2, 3)), 0.1, r"square matrix \[models, models\]; got shape \(2, 3\)"),
            (np.zeros((0, 0)), 0.1, r"square matrix \[models, models\]; got shape \(0, 0\)"),
            (np.zeros((2, 2)), -0.1, "prior must be at least 0; got -0.1"),
            (np.array([[0.0, np.nan], [1.0, 0.0]]), 0.1, r"finite and at least 0; wins\[0, 1\] is nan"),
            (np.array([[0.0, 1.0], [-1.0, 0.0]]), 0.1, r"finite and at least 0; wins\[1, 0\] is -1.0"),
        ],
    )
    def test_bad_input(self, wins, prior, message):
        with pytest.raises(InputError, match=message):
            bradley_terry.fit(wins, prior=prior)


def test_win_prob():
    ratings = jnp.array([0.0, math.log(3.0), -50.0])
    np.testing.assert_allclose(bradley_terry.win_prob(ratings, jnp.zeros(3)), [0.5, 0.75, 0.0], atol=1e-6)
    np.testing.assert_allclose(jax.jit(bradley_terry.win_prob)(jnp.zeros(3), ratings), [0.5, 0.25, 1.0], atol=1e-6)


def sum_of_variances(ratings, tier):
    return sum(np.var(ratings[tier == each]) for each in set(tier.tolist()))


class TestTiers:
    def test_hand_value(self):
        ratings = np.array([1.0, 9.0, 1.2, 5.0, 9.1, 5.2, 0.9])
        assert bradley_terry.tiers(ratings, 3).tolist() == [2, 0, 2, 1, 0, 1, 2]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.floats(-5.0, 5.0).map(lambda rating: round(rating, 2)), min_size=1, max_size=8), st.data())
    def test_optimal_by_brute_force(self, values, draws):
        ratings = np.array(values)
        num_tiers = draws.draw(st.integers(1, len(values)))
        tier = bradley_terry.tiers(ratings, num_tiers)
        assert set(tier.tolist()) == set(range(num_tiers))
        order = np.argsort(-ratings, kind="stable")
        assert (np.diff(tier[order]) >= 0).all()
        best = math.inf
        for cuts in itertools.combinations(range(1, len(values)), num_tiers - 1):
            candidate = np.zeros(len(values), int)
            candidate[order] = np.searchsorted(cuts, np.arange(len(values)), side="right")
            best = min(best, sum_of_variances(ratings, candidate))
        assert sum_of_variances(ratings, tier) == pytest.approx(best, abs=1e-9)

    def test_a_tier_counts_alike_however_many_models_it_holds(self):
        # {2} and the rest: variances 0 + .119, squares 1.31; {2, 1.2} and the zeros: .16 + 0, squares .32.
        assert bradley_terry.tiers(np.array([2.0, 1.2] + [0.0] * 10), 2).tolist() == [0] + [1] * 11

    def test_a_large_offset_changes_nothing(self):
        ratings = np.random.default_rng(0).normal(size=64)
        np.testing.assert_array_equal(bradley_terry.tiers(ratings, 10), bradley_terry.tiers(ratings + 1e6, 10))

    def test_takes_the_ratings_of_a_fit(self):
        wins = np.array([[0.0, 5.0, 9.0], [4.0, 0.0, 9.0], [1.0, 1.0, 0.0]])
        assert bradley_terry.tiers(bradley_terry.fit(wins), 2).tolist() == [0, 0, 1]

    @pytest.mark.parametrize(
        ("ratings", "num_tiers", "message"),
        [
            ([1.0, 2.0], 3, r"num_tiers must lie in 1\.\.2, the number of models; got 3"),
            ([1.0, 2.0], 0, "num_tiers must lie in"),
            ([1.0, np.nan], 1, "finite numbers"),
            ([[1.0, 2.0]], 1, "vector of finite numbers"),
        ],
    )
    def test_bad_input(self, ratings, num_tiers, message):
        with pytest.raises(InputError, match=message):
            bradley_terry.tiers(np.array(ratings), num_tiers)
