"""The Bradley-Terry loss against hand values and scikit-learn, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.metrics import log_loss

from routerjax import losses
from routerjax.typing import PreferenceBatch

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
    loss = losses.bradley_terry(jnp.float32(margin), jnp.float32(label))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_equals_sklearn_log_loss() -> None:
    rng = np.random.default_rng(0)
    margin, wins = rng.normal(size=200).astype(np.float32), rng.integers(2, size=200)
    ours = losses.bradley_terry(jnp.asarray(margin), jnp.asarray(wins, jnp.float32)).mean()
    np.testing.assert_allclose(ours, log_loss(wins, 1 / (1 + np.exp(-margin.astype(float)))), rtol=1e-6)


def test_extremes_are_finite_and_linear() -> None:
    margin = jnp.asarray([-1e4, -100.0, 100.0, 1e4])
    np.testing.assert_allclose(losses.bradley_terry(margin, jnp.ones(4)), [1e4, 100.0, 0.0, 0.0], atol=1e-6)
    gradient = jax.vmap(jax.grad(losses.bradley_terry))(margin, jnp.ones(4))
    np.testing.assert_allclose(gradient, [-1.0, -1.0, 0.0, 0.0], atol=1e-6)


@given(margin=MARGINS, label=LABELS)
def test_swapping_the_sides_changes_nothing(margin: float, label: float) -> None:
    one = losses.bradley_terry(jnp.float32(margin), jnp.float32(label))
    other = losses.bradley_terry(jnp.float32(-margin), jnp.float32(1) - jnp.float32(label))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@given(label=st.floats(0.01, 0.99))
def test_the_minimum_is_the_entropy_at_the_log_odds(label: float) -> None:
    best = np.log(label / (1 - label))
    entropy = -label * np.log(label) - (1 - label) * np.log(1 - label)
    at = losses.bradley_terry(jnp.asarray([best - 0.1, best, best + 0.1], jnp.float32), jnp.full(3, label))
    np.testing.assert_allclose(at[1], entropy, rtol=1e-5)
    assert at[1] < at[0]
    assert at[1] < at[2]


def test_gradients_and_jit() -> None:
    margin, label = jnp.linspace(-3, 3, 7), jnp.linspace(0, 1, 7)
    check_grads(losses.bradley_terry, (margin, label), order=2, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2)
    np.testing.assert_array_equal(jax.jit(losses.bradley_terry)(margin, label), losses.bradley_terry(margin, label))


def test_preference_loss_reads_the_right_scores() -> None:
    scores = jnp.asarray([[0.0, 1.0, 5.0], [2.0, -1.0, 0.5]])
    batch = PreferenceBatch(
        query={},
        query_index=jnp.asarray([1, 0]),
        model_a=jnp.asarray([0, 1]),
        model_b=jnp.asarray([1, 2]),
        outcome=jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        weight=jnp.ones(2),
    )
    np.testing.assert_allclose(losses.margin(scores, batch), [3.0, -4.0])
    expected = [np.log1p(np.exp(-3.0)), 0.5 * np.log1p(np.exp(4.0)) + 0.5 * np.log1p(np.exp(-4.0))]
    np.testing.assert_allclose(losses.preference_loss(scores, batch), expected, rtol=1e-6)


def test_readout_is_the_sigmoid_of_the_margin() -> None:
    scores = jnp.asarray([[np.log(3.0), 0.0, 9.0]])
    np.testing.assert_allclose(losses.bradley_terry_readout(scores, 0, 1), [0.75], rtol=1e-6)
    np.testing.assert_allclose(losses.bradley_terry_readout(scores, 1, 0), [0.25], rtol=1e-6)
