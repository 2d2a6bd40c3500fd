"""The Bradley-Terry loss against hand values and scikit-learn, and its laws."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.metrics import log_loss

from routerjax import losses

# Compiled whole: op by op, each operation would be a program of its own.
bradley_terry = jax.jit(losses.bradley_terry)
MARGINS = st.floats(-30, 30, width=32)
LABELS = st.floats(0, 1, width=32)


@pytest.mark.parametrize(
    ("margin", "label", "expected"),
    [
        (0.0, 1.0, np.log(2)),
        (0.0, 0.5, np.log(2)),
        (np.log(3), 1.0, np.log(4 / 3)),
        (np.log(3), 0.0, np.log(4)),
        (np.log(3), 0.5, 0.5 * np.log(4 / 3) + 0.5 * np.log(4)),
    ],
)
def test_hand_values(margin: float, label: float, expected: float) -> None:
    loss = bradley_terry(np.float32(margin), np.float32(label))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_equals_sklearn_log_loss() -> None:
    rng = np.random.default_rng(0)
    margin, wins = rng.normal(size=200).astype(np.float32), rng.integers(2, size=200)
    ours = np.asarray(bradley_terry(margin, wins.astype(np.float32)))
    np.testing.assert_allclose(ours.mean(), log_loss(wins, 1 / (1 + np.exp(-margin.astype(float)))), rtol=1e-6)


def test_extremes_are_finite_and_linear() -> None:
    margin, label = np.asarray([-1e4, -100.0, 100.0, 1e4], np.float32), np.ones(4, np.float32)
    loss, gradient = jax.jit(jax.vmap(jax.value_and_grad(losses.bradley_terry)))(margin, label)
    np.testing.assert_allclose(loss, [1e4, 100.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(gradient, [-1.0, -1.0, 0.0, 0.0], atol=1e-6)


@given(margin=MARGINS, label=LABELS)
def test_swapping_the_sides_changes_nothing(margin: float, label: float) -> None:
    one = bradley_terry(np.float32(margin), np.float32(label))
    other = bradley_terry(np.float32(-margin), np.float32(1) - np.float32(label))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@given(label=st.floats(0.01, 0.99))
def test_the_minimum_is_the_entropy_at_the_log_odds(label: float) -> None:
    best = np.log(label / (1 - label))
    entropy = -label * np.log(label) - (1 - label) * np.log(1 - label)
    margin = np.asarray([best - 0.1, best, best + 0.1], np.float32)
    at = np.asarray(bradley_terry(margin, np.full(3, label, np.float32)))
    np.testing.assert_allclose(at[1], entropy, rtol=1e-5)
    assert at[1] < at[0]
    assert at[1] < at[2]


def test_gradients_and_jit() -> None:
    margin, label = jnp.linspace(-3, 3, 7), jnp.linspace(0, 1, 7)
    check_grads(losses.bradley_terry, (margin, label), order=2, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2)
    np.testing.assert_array_equal(bradley_terry(margin, label), losses.bradley_terry(margin, label))


def reference_prob(loss: str, margin: float, tie: float) -> np.ndarray:
    """P(a), P(tie), P(b), in float64, from the models' definitions as their papers print them."""
    strength = np.exp(margin)  # of a, where b has 1
    if loss == "rao_kupper":
        theta = 1 + np.exp(tie)  # exp(softplus(tie))
        win, lose = strength / (strength + theta), 1 / (theta * strength + 1)
        return np.asarray([win, 1 - win - lose, lose])
    nu = np.exp(tie)
    total = strength + 1 + nu * np.sqrt(strength)
    return np.asarray([strength, nu * np.sqrt(strength), 1]) / total


LOG_PROB = {"rao_kupper": jax.jit(losses.rao_kupper_log_prob), "davidson": jax.jit(losses.davidson_log_prob)}


@pytest.mark.parametrize("loss", LOG_PROB)
@given(margin=st.floats(-12, 12, width=32), tie=st.floats(-6, 6, width=32))
def test_outcomes_are_those_of_the_papers(loss: str, margin: float, tie: float) -> None:
    log_prob = np.asarray(LOG_PROB[loss](np.float32(margin), np.float32(tie)))
    np.testing.assert_allclose(np.exp(log_prob), reference_prob(loss, margin, tie), rtol=2e-4, atol=1e-6)
    other = np.asarray(LOG_PROB[loss](np.float32(-margin), np.float32(tie)))
    np.testing.assert_allclose(log_prob, other[::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOG_PROB)
def test_outcomes_at_the_extremes_have_finite_logarithms_and_gradients(loss: str) -> None:
    margin, tie = np.asarray([-1e4, 0.0, 1e4], np.float32), np.asarray([-40.0, 0.0, 40.0], np.float32)
    assert np.isfinite(LOG_PROB[loss](margin, tie)).all()
    gradient = jax.jit(jax.grad(lambda both: LOG_PROB[loss](*both)[:, 1].sum()))((margin, tie))
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    check_grads(LOG_PROB[loss], (jnp.asarray([0.3, -2.0]), jnp.asarray([-0.5, 1.0])), order=1, modes=["rev"], rtol=1e-2)


grounded = jax.jit(losses.grounded_rao_kupper_log_prob)


def grounded_reference(score_a: float, score_b: float, tie: float) -> list[float]:
    """Logarithms of P(a), P(tie), P(b), P(both bad) as P2L's paper defines them, in 200 digits."""
    with decimal.localcontext(prec=200):
        a, b, theta = (decimal.Decimal(float(score)).exp() for score in (score_a, score_b, tie))
        theta += 1 + decimal.Decimal("1e-6")
        win, lose, both_bad = a / (a + theta * b + 1), b / (b + theta * a + 1), 1 / (a + b + 1)
        return [float(prob.ln()) for prob in (win, 1 - win - lose - both_bad, lose, both_bad)]


def test_grounded_outcomes_by_hand() -> None:
    # pi_a = 3, pi_b = 1, theta = 2: 3 / 6, 1 / 8, 1 / 5, and the rest; without the 1e-6, which float32 hardly sees.
    prob = np.exp(grounded(np.log(np.float32(3)), np.float32(0), np.float32(0)))
    np.testing.assert_allclose(prob, [0.5, 1 - 0.5 - 0.125 - 0.2, 0.125, 0.2], rtol=1e-5)


@given(scores=st.tuples(*[st.floats(-80, 80, width=32)] * 3))
@example(scores=(80.0, 80.0, -40.0))
@example(scores=(-80.0, -80.0, 80.0))
def test_grounded_outcomes_are_those_of_the_paper(scores: tuple[float, float, float]) -> None:
    log_prob = np.asarray(grounded(*np.float32(scores)), np.float64)
    np.testing.assert_allclose(log_prob, grounded_reference(*scores), rtol=2e-6, atol=2e-6)
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=2e-6)
    score_a, score_b, tie = np.float32(scores)
    np.testing.assert_allclose(grounded(score_b, score_a, tie), log_prob[[2, 1, 0, 3]], rtol=2e-6, atol=2e-6)


def test_grounded_outcomes_have_finite_logarithms_and_gradients() -> None:
    extremes = np.asarray([-1e30, -1e4, 0.0, 1e4, 1e30], np.float32)
    scores = tuple(map(np.ravel, np.meshgrid(extremes, extremes, extremes)))
    assert np.isfinite(grounded(*scores)).all()
    gradient = jax.jit(jax.vmap(jax.jacobian(losses.grounded_rao_kupper_log_prob, argnums=(0, 1, 2))))(*scores)
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    some = tuple(jnp.asarray(column) for column in ([0.3, -2.0], [1.0, -1.5], [-0.5, 1.0]))
    check_grads(grounded, some, order=1, modes=["rev"], rtol=1e-2)


@pytest.mark.parametrize("tie", [-16.9, -17.1, -120.0, -1e6])
def test_a_threshold_near_zero_has_finite_losses_and_gradients(tie: float) -> None:
    log_prob, gradient = jax.jit(
        jax.value_and_grad(lambda margin, tie: losses.rao_kupper_log_prob(margin, tie)[1], argnums=(0, 1))
    )(jnp.float32(0.7), jnp.float32(tie))
    # P(tie) = (exp(2 t) - 1) P(a) P(b), about 2 t sigmoid(m) sigmoid(-m) with t = exp(tie).
    expected = np.log(2) + tie - np.log1p(np.exp(-0.7)) - np.log1p(np.exp(0.7))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], 1.0, rtol=1e-5)
    assert np.isfinite(gradient[0])
