"""The Bradley-Terry loss against hand values and scikit-learn, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.metrics import log_loss

from routerjax import InputError, losses
from routerjax.typing import PreferenceBatch

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


def test_preference_loss_reads_the_right_scores() -> None:
    scores = np.asarray([[0.0, 1.0, 5.0], [2.0, -1.0, 0.5]], np.float32)
    batch = PreferenceBatch(
        query={},
        query_index=np.asarray([1, 0]),
        model_a=np.asarray([0, 1]),
        model_b=np.asarray([1, 2]),
        outcome=np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32),
        weight=np.ones(2, np.float32),
    )
    np.testing.assert_allclose(jax.jit(losses.margin)(scores, batch), [3.0, -4.0])
    expected = [np.log1p(np.exp(-3.0)), 0.5 * np.log1p(np.exp(4.0)) + 0.5 * np.log1p(np.exp(-4.0))]
    np.testing.assert_allclose(jax.jit(losses.preference_loss)(scores, batch), expected, rtol=1e-6)


def test_readout_is_the_sigmoid_of_the_margin() -> None:
    scores, read = np.asarray([[np.log(3.0), 0.0, 9.0]], np.float32), jax.jit(losses.bradley_terry_readout)
    np.testing.assert_allclose(read(scores, 0, 1), [0.75], rtol=1e-6)
    np.testing.assert_allclose(read(scores, 1, 0), [0.25], rtol=1e-6)


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
    found = np.asarray(LOG_PROB[loss](np.float32(margin), np.float32(tie)))
    np.testing.assert_allclose(np.exp(found), reference_prob(loss, margin, tie), rtol=2e-4, atol=1e-6)
    other = np.asarray(LOG_PROB[loss](np.float32(-margin), np.float32(tie)))
    np.testing.assert_allclose(found, other[::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOG_PROB)
def test_outcomes_at_the_extremes_have_finite_logarithms_and_gradients(loss: str) -> None:
    margin, tie = np.asarray([-1e4, 0.0, 1e4], np.float32), np.asarray([-40.0, 0.0, 40.0], np.float32)
    assert np.isfinite(LOG_PROB[loss](margin, tie)).all()
    gradient = jax.jit(jax.grad(lambda both: LOG_PROB[loss](*both)[:, 1].sum()))((margin, tie))
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    check_grads(LOG_PROB[loss], (jnp.asarray([0.3, -2.0]), jnp.asarray([-0.5, 1.0])), order=1, modes=["rev"], rtol=1e-2)


def three_battles() -> tuple[np.ndarray, PreferenceBatch]:
    """Two queries, three models, and a tie score as last column."""
    scores = np.asarray([[1.0, 0.0, -1.0, 0.2], [0.5, 2.0, 0.0, -0.7]], np.float32)
    outcome = np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], np.float32)
    index, model_a, model_b = np.asarray([[0, 1, 1], [0, 2, 1], [1, 0, 2]])
    return scores, PreferenceBatch({}, index, model_a, model_b, outcome, np.ones(3, np.float32))


@pytest.mark.parametrize("loss", ["rao_kupper", "davidson", "three_outcome"])
def test_the_loss_of_a_battle_is_the_cross_entropy_of_its_outcome(loss: str) -> None:
    scores, batch = three_battles()
    margins, ties = [1.0, -0.5, 2.0], [0.2, -0.7, -0.7]
    kind = "davidson" if loss == "three_outcome" else loss
    prob = [reference_prob(kind, margin, tie) for margin, tie in zip(margins, ties, strict=True)]
    expected = [-np.sum(own * np.log(p)) for own, p in zip(np.asarray(batch.outcome), prob, strict=True)]
    found = jax.jit(losses.make_preference_loss(loss))(scores, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bradley_terry_by_name_is_the_loss_itself() -> None:
    assert losses.make_preference_loss("bradley_terry") is losses.preference_loss
    assert losses.make_readout("bradley_terry", "win") is losses.bradley_terry_readout
    assert losses.make_readout("davidson") is losses.make_readout("davidson")


def test_three_labels_equal_sklearn_and_battles_the_other_way_round_are_read_backwards() -> None:
    rng = np.random.default_rng(0)
    logits, drawn = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(3, size=50)
    forward = rng.random(50) < 0.5
    outcome = np.eye(3)[drawn]
    batch = PreferenceBatch(
        {},
        np.arange(50),
        np.where(forward, 0, 1),
        np.where(forward, 1, 0),
        np.where(forward[:, None], outcome, outcome[:, ::-1]).astype(np.float32),
        np.ones(50, np.float32),
    )
    prob = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    found = np.asarray(jax.jit(losses.make_preference_loss("three_labels"))(logits, batch))
    np.testing.assert_allclose(found.mean(), log_loss(drawn, prob, labels=[0, 1, 2]), rtol=1e-5)
    read = jax.jit(losses.make_outcome_prob("three_labels"), static_argnums=(1, 2))
    np.testing.assert_allclose(read(logits, 0, 1), prob, rtol=1e-5)
    np.testing.assert_allclose(read(logits, 1, 0), prob[:, ::-1], rtol=1e-5)


@pytest.mark.parametrize("loss", ["rao_kupper", "davidson", "three_outcome", "three_labels"])
def test_readouts(loss: str) -> None:
    scores, names = np.asarray([[0.7, -0.4, 0.3]], np.float32), ("half_tie", "win", "decisive")

    @jax.jit
    def read(scores: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        win_prob = {name: losses.make_readout(loss, name)(scores, 0, 1) for name in names}
        return losses.make_outcome_prob(loss)(scores, 0, 1), win_prob

    prob, win_prob = jax.device_get(read(scores))
    win, tie, lose = prob[0]
    assert win + tie + lose == pytest.approx(1.0, abs=1e-6)
    for name, expected in zip(names, ((1 + win - lose) / 2, win, win / (win + lose)), strict=True):
        np.testing.assert_allclose(win_prob[name], [expected], rtol=1e-5)


def test_a_decisive_readout_does_not_depend_on_how_sure_the_tie_is() -> None:
    # P(win) : P(loss) = e ** 2, whatever is left of them beside the tie; in float32 both are 0 at a tie score of 200.
    read = jax.jit(losses.make_readout("three_outcome", "decisive"), static_argnums=(1, 2))
    scores = np.asarray([[1.0, -1.0, tie] for tie in (0.0, 50.0, 200.0)], np.float32)
    np.testing.assert_allclose(read(scores, 0, 1), np.full(3, 1 / (1 + np.exp(-2.0))), rtol=1e-6)
    labels = jax.jit(losses.make_readout("three_labels", "decisive"), static_argnums=(1, 2))
    np.testing.assert_allclose(labels(np.asarray([[-299.0, 0.0, -300.0]], np.float32), 0, 1), [1 / (1 + np.exp(-1.0))])


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


def test_without_ties_the_expected_gain_is_twice_the_win_probability_minus_one() -> None:
    outcome_prob = jax.jit(losses.make_outcome_prob("bradley_terry"))
    prob = outcome_prob(np.asarray([[np.log(3.0), 0.0]], np.float32), 0, 1)
    np.testing.assert_allclose(prob, [[0.75, 0.0, 0.25]], rtol=1e-6)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match=r"the loss must be one of .*got 'davidsson' \(did you mean 'davidson'\?\)"):
        losses.make_preference_loss("davidsson")
    with pytest.raises(InputError, match=r"the readout must be one of .*got 'wins' \(did you mean 'win'\?\)"):
        losses.make_readout("davidson", "wins")
