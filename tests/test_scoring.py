"""The scoring function on a small linear family."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import expit

from routerjax import scoring
from routerjax.errors import InputError
from routerjax.likelihoods import BradleyTerry

QUERY = {"embedding": jax.random.normal(jax.random.key(1), (5, 4))}


class LinearScores(nn.Module):
    """scores = embedding @ kernel, noisy unless deterministic."""

    num_models: int

    @nn.compact
    def __call__(self, query, *, deterministic=True):
        scores = nn.Dense(self.num_models, use_bias=False)(query["embedding"])
        return scores if deterministic else scores + jax.random.normal(self.make_rng("noise"), scores.shape)


class UncountedScores(nn.Module):
    """A family that does not say how many models it has."""

    @nn.compact
    def __call__(self, query, *, deterministic=True):
        return nn.Dense(2, dtype=jnp.bfloat16)(query["embedding"])


@pytest.fixture
def variables():
    return LinearScores(num_models=3).init(jax.random.key(0), QUERY)


def test_is_the_sigmoid_of_the_margin(variables):
    score = scoring.make_score_fn(LinearScores(num_models=3), strong=2, weak=0)
    win_prob = score(variables, QUERY)
    scores = np.asarray(QUERY["embedding"]) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    assert win_prob.dtype == jnp.float32
    assert win_prob.shape == (5,)
    np.testing.assert_allclose(win_prob, expit(scores[:, 2] - scores[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(score)(variables, QUERY), win_prob, rtol=1e-6)


def test_swapping_the_models_gives_the_complement(variables):
    forth = scoring.make_score_fn(LinearScores(num_models=3), strong=1, weak=2)(variables, QUERY)
    back = scoring.make_score_fn(LinearScores(num_models=3), strong=2, weak=1)(variables, QUERY)
    np.testing.assert_allclose(forth + back, 1.0, rtol=1e-6)


def test_is_differentiable(variables):
    score = scoring.make_score_fn(LinearScores(num_models=3), strong=1, weak=0)
    check_grads(lambda params: score({"params": params}, QUERY), (variables["params"],), order=1, modes=["rev"])


def test_another_likelihood(variables):
    class AgainstAll(BradleyTerry):
        """The best of all models wins."""

        def win_prob(self, variables, scores, strong, weak):
            """P(the strong model is the best)."""
            return jax.nn.softmax(scores)[:, strong].astype(jnp.bfloat16)

    score = scoring.make_score_fn(LinearScores(num_models=3), strong=0, weak=1, likelihood=AgainstAll())
    scores = LinearScores(num_models=3).apply(variables, QUERY)
    assert score(variables, QUERY).dtype == jnp.float32
    np.testing.assert_allclose(score(variables, QUERY), jax.nn.softmax(scores)[:, 0], atol=0.01)


def test_a_module_of_unknown_size_in_half_precision():
    variables = UncountedScores().init(jax.random.key(0), QUERY)
    win_prob = scoring.make_score_fn(UncountedScores(), strong=0, weak=1)(variables, QUERY)
    assert win_prob.dtype == jnp.float32
    assert np.isfinite(win_prob).all()


@pytest.mark.parametrize(
    ("strong", "weak", "message"),
    [
        (1, 1, "must differ; both are column 1"),
        (3, 0, r"the strong model's column must be in 0\.\.2, the router's 3 models; got 3"),
        (0, -1, r"the weak model's column must be in 0\.\.2, the router's 3 models; got -1"),
    ],
)
def test_bad_columns(strong, weak, message):
    with pytest.raises(InputError, match=message):
        scoring.make_score_fn(LinearScores(num_models=3), strong=strong, weak=weak)


def test_a_negative_column_of_a_module_of_unknown_size():
    with pytest.raises(InputError, match="strong model's column must be 0 or above; got -1"):
        scoring.make_score_fn(UncountedScores(), strong=-1, weak=0)
