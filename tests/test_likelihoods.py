"""Probabilities of each likelihood against the papers' definitions and scikit-learn."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from routerjax import InputError, losses
from routerjax.formats import export
from routerjax.likelihoods import (
    LIKELIHOODS,
    BradleyTerry,
    Likelihood,
    ThreeLabels,
    make_likelihood,
    read_likelihood,
    register_likelihood,
)
from routerjax.router import load_router, save_router
from routerjax.typing import PreferenceBatch, Sides
from tests.routers import tiny_router
from tests.test_losses import reference_prob


def test_a_loss_reads_the_right_scores() -> None:
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
    np.testing.assert_allclose(jax.jit(BradleyTerry().loss)({}, scores, batch), expected, rtol=1e-6)


def test_the_win_probability_is_the_sigmoid_of_the_margin() -> None:
    scores, read = np.asarray([[np.log(3.0), 0.0, 9.0]], np.float32), jax.jit(BradleyTerry().win_prob)
    np.testing.assert_allclose(read({}, scores, 0, 1), [0.75], rtol=1e-6)
    np.testing.assert_allclose(read({}, scores, 1, 0), [0.25], rtol=1e-6)


def three_battles() -> tuple[np.ndarray, PreferenceBatch]:
    """Two queries, three models, and a tie score as last column."""
    scores = np.asarray([[1.0, 0.0, -1.0, 0.2], [0.5, 2.0, 0.0, -0.7]], np.float32)
    outcome = np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], np.float32)
    index, model_a, model_b = np.asarray([[0, 1, 1], [0, 2, 1], [1, 0, 2]])
    return scores, PreferenceBatch({}, index, model_a, model_b, outcome, np.ones(3, np.float32))


@pytest.mark.parametrize("name", ["rao_kupper", "davidson", "three_outcome"])
def test_the_loss_of_a_battle_is_the_cross_entropy_of_its_outcome(name: str) -> None:
    scores, batch = three_battles()
    margins, ties = [1.0, -0.5, 2.0], [0.2, -0.7, -0.7] if name == "three_outcome" else [0.4, 0.4, 0.4]
    kind = "davidson" if name == "three_outcome" else name
    prob = [reference_prob(kind, margin, tie) for margin, tie in zip(margins, ties, strict=True)]
    expected = [-np.sum(outcome * np.log(p)) for outcome, p in zip(np.asarray(batch.outcome), prob, strict=True)]
    loss = jax.jit(make_likelihood(name).loss)({"tie": np.float32(0.4)}, scores, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_likelihoods_of_prompt_to_leaderboard_read_their_scores_as_it_does() -> None:
    # In its code, theta of `bag` is exp(eta) + 1.000001, and the threshold of `rk` is softplus(eta - 22.5, beta=0.1),
    # clamped at 0.02.
    scores = np.asarray([[1.0, -0.5, 0.3, -0.7], [0.2, 2.0, 1.0, 30.0], [1.5, 1.0, 0.0, -60.0]], np.float32)
    index, model_a, model_b = np.asarray([[0, 1, 1, 2], [0, 2, 1, 0], [1, 0, 2, 1]])
    sides = Sides(index, model_a, model_b)
    a, b, eta = (
        scores[index, model_a].astype(float),
        scores[index, model_b].astype(float),
        scores[index, -1].astype(float),
    )
    threshold = np.maximum(np.log1p(np.exp(0.1 * (eta - 22.5))) / 0.1, 0.02)
    win, lose = 1 / (1 + np.exp(b - a + threshold)), 1 / (1 + np.exp(a - b + threshold))
    actual = np.exp(jax.jit(make_likelihood("rao_kupper_by_prompt").log_prob)({}, scores, sides))
    np.testing.assert_allclose(actual, np.stack([win, 1 - win - lose, lose], axis=1), rtol=1e-4)
    theta = np.exp(eta) + 1.000001
    win, lose = (np.exp(x) / (np.exp(x) + theta * np.exp(y) + 1) for x, y in ((a, b), (b, a)))
    both_bad = 1 / (1 + np.exp(a) + np.exp(b))
    actual = np.exp(jax.jit(make_likelihood("grounded_rao_kupper").log_prob)({}, scores, sides))
    expected = np.stack([win, 1 - win - lose - both_bad, lose, both_bad], axis=1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_outcomes_are_as_many_as_is_said_and_sum_to_one(name: str) -> None:
    likelihood = make_likelihood(name)
    scores = np.asarray([[1.0, 0.0, -1.0, 0.2, 0.4], [0.5, 2.0, 0.0, -0.7, 0.1]], np.float32)
    outputs = len(likelihood.output_names(("x", "y")))
    params = likelihood.initial_params()
    prob = jax.jit(likelihood.outcome_prob)({"likelihood": params}, scores[:, :outputs], 0, 1)
    assert prob.shape == (2, likelihood.num_outcomes)
    np.testing.assert_allclose(prob.sum(axis=1), 1, rtol=1e-6)
    assert likelihood.model_scores(scores[:, :outputs]).shape[1] == (outputs if likelihood.is_of_one_pair else 2)


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
    loss = np.asarray(jax.jit(ThreeLabels().loss)({}, logits, batch))
    np.testing.assert_allclose(loss.mean(), log_loss(drawn, prob, labels=[0, 1, 2]), rtol=1e-5)
    read = jax.jit(ThreeLabels().outcome_prob)
    np.testing.assert_allclose(read({}, logits, 0, 1), prob, rtol=1e-5)
    np.testing.assert_allclose(read({}, logits, 1, 0), prob[:, ::-1], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "bradley_terry"])
def test_readouts(name: str) -> None:
    outputs = len(make_likelihood(name).output_names(("x", "y")))
    scores = np.asarray([[0.7, -0.4, 0.3, 0.1, -0.2]], np.float32)[:, : max(outputs, 3)]
    variables = {"likelihood": {"tie": np.float32(0.3)}}
    readouts = ("half_tie", "win", "decisive")

    @jax.jit
    def read(scores: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        win_prob = {one: make_likelihood(name, readout=one).win_prob(variables, scores, 0, 1) for one in readouts}
        return make_likelihood(name).outcome_prob(variables, scores, 0, 1), win_prob

    prob, win_prob = jax.device_get(read(scores))
    win, _, lose = prob[0, :3]
    for one, expected in zip(readouts, ((1 + win - lose) / 2, win, win / (win + lose)), strict=True):
        np.testing.assert_allclose(win_prob[one], [expected], rtol=1e-5)


def test_a_decisive_readout_does_not_depend_on_how_sure_the_tie_is() -> None:
    # P(win) : P(loss) = e ** 2, whatever is left of them beside the tie; in float32 both are 0 at a tie score of 200.
    read = jax.jit(make_likelihood("three_outcome", readout="decisive").win_prob)
    scores = np.asarray([[1.0, -1.0, tie] for tie in (0.0, 50.0, 200.0)], np.float32)
    np.testing.assert_allclose(read({}, scores, 0, 1), np.full(3, 1 / (1 + np.exp(-2.0))), rtol=1e-6)
    labels = jax.jit(ThreeLabels("decisive").win_prob)
    expected = [1 / (1 + np.exp(-1.0))]
    np.testing.assert_allclose(labels({}, np.asarray([[-299.0, 0.0, -300.0]], np.float32), 0, 1), expected)


def test_labels_count_ties_as_the_win_probability_does() -> None:
    outcome = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    expected = {"half_tie": [1, 0.5, 0.35], "win": [1, 0, 0.2], "decisive": [1, np.nan, 0.2 / 0.7]}
    for readout, labels in expected.items():
        np.testing.assert_allclose(make_likelihood("davidson", readout=readout).label(outcome), labels, rtol=1e-6)
        np.testing.assert_allclose(BradleyTerry(readout).label(outcome), expected["half_tie"], rtol=1e-6)


def test_without_ties_the_expected_gain_is_twice_the_win_probability_minus_one() -> None:
    prob = jax.jit(BradleyTerry().outcome_prob)({}, np.asarray([[np.log(3.0), 0.0]], np.float32), 0, 1)
    np.testing.assert_allclose(prob, [[0.75, 0.0, 0.25]], rtol=1e-6)


class FourLabels(Likelihood):
    """A softmax over a wins, tie, b wins, both bad."""

    name = "four_labels"
    num_outcomes = 4

    def log_prob(self, params: object, scores: jax.Array, sides: Sides) -> jax.Array:
        return jax.nn.log_softmax(scores[sides.query_index], axis=-1)


def test_bad_ties_that_only_the_battles_or_only_the_likelihood_tell_apart_are_ties() -> None:
    scores, batch = three_battles()
    apart = batch._replace(outcome=np.asarray([[0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0]], np.float32))
    merged = batch._replace(outcome=np.asarray([[0, 1, 0], [0.1, 0.6, 0.3], [0, 1, 0]], np.float32))
    np.testing.assert_allclose(apart.label, merged.label, rtol=1e-6)
    for likelihood in (BradleyTerry(), make_likelihood("three_outcome")):
        loss = jax.jit(likelihood.loss)
        np.testing.assert_allclose(loss({}, scores, apart), loss({}, scores, merged), rtol=1e-6)
    loss = jax.jit(FourLabels().loss)
    prob = np.exp(jax.nn.log_softmax(scores[batch.query_index].astype(float)))
    np.testing.assert_allclose(loss({}, scores, apart), -np.sum(apart.outcome * np.log(prob), axis=1), rtol=1e-5)
    tie = np.stack([prob[:, 0], prob[:, 1] + prob[:, 3], prob[:, 2]], axis=1)
    np.testing.assert_allclose(loss({}, scores, merged), -np.sum(merged.outcome * np.log(tie), axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("readout", "expected", "label"), [("half_tie", 0.6, 0.5), ("win", 0.4, 0), ("decisive", 2 / 3, np.nan)]
)
def test_readouts_count_bad_ties_as_ties(readout: str, expected: float, label: float) -> None:
    prob = np.asarray([[0.4, 0.1, 0.2, 0.3]], np.float32)
    np.testing.assert_allclose(jax.jit(FourLabels(readout).win_prob)({}, jnp.log(prob), 0, 1), [expected], rtol=1e-5)
    np.testing.assert_allclose(FourLabels(readout).label(jnp.asarray([[0, 0, 0, 1.0]])), [label])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_is_kept_as_json_and_equal_ones_are_the_same_key(name: str) -> None:
    likelihood = make_likelihood(name, readout="win")
    assert read_likelihood(likelihood.to_dict()) == likelihood
    assert hash(read_likelihood(likelihood.to_dict())) == hash(likelihood)
    assert likelihood != make_likelihood(name)
    assert likelihood.output_names(("big", "small"))[:1] in (("big",), ("big wins",), ("small rated 1",))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match=r"the loss must be one of .*got 'davidsson' \(did you mean 'davidson'\?\)"):
        make_likelihood("davidsson")
    with pytest.raises(InputError, match=r"the readout must be one of .*got 'wins' \(did you mean 'win'\?\)"):
        make_likelihood("davidson", readout="wins")
    with pytest.raises(InputError, match=r"no setting 'davidson\.nu'"):
        make_likelihood("davidson", nu=1.0)


OF_ANOTHER_PACKAGE = '''
import jax
import jax.numpy as jnp

from routerjax.likelihoods import Likelihood


class Tempered(Likelihood):
    """Bradley and Terry's with a slope of its own, which is trained."""

    name = "tempered"

    def initial_params(self):
        return {"slope": jnp.ones(())}

    def log_prob(self, params, scores, sides):
        margin = scores[sides.query_index, sides.model_a] - scores[sides.query_index, sides.model_b]
        margin = params["slope"] * margin
        return jnp.stack([jax.nn.log_sigmoid(margin), jnp.full_like(margin, -jnp.inf), jax.nn.log_sigmoid(-margin)], -1)
'''


def test_a_likelihood_of_another_package_is_kept_found_by_its_entry_point_and_exported(
    tmp_path: Path, install: Callable[..., None]
) -> None:
    plain = tiny_router(tmp_path)
    save_router(plain, tmp_path / "plain")
    content = json.loads((tmp_path / "plain" / "router.json").read_text())
    assert content["likelihood"] == {"name": "bradley_terry", "readout": "half_tie"}
    with pytest.raises(InputError, match=r"the loss must be one of .*got 'tempered'"):
        make_likelihood("tempered")
    install("[routerjax.likelihoods]\ntempered = tempered_likelihood:Tempered", tempered_likelihood=OF_ANOTHER_PACKAGE)
    variables = {**plain.variables, "likelihood": {"slope": jnp.asarray(2.0)}}
    router = dataclasses.replace(plain, likelihood=make_likelihood("tempered"), variables=variables)
    save_router(router, tmp_path / "saved")
    loaded = load_router(tmp_path / "saved")
    prompts = ["prove it", "a poem"]
    odds = np.asarray(plain.win_prob(prompts), np.float64) / (1 - np.asarray(plain.win_prob(prompts), np.float64))
    np.testing.assert_allclose(loaded.win_prob(prompts), odds**2 / (1 + odds**2), rtol=1e-5)
    assert export(loaded, tmp_path / "bundle", "stablehlo")["from_text"] <= 1e-5


def test_what_did_not_happen_costs_nothing_even_where_it_never_could() -> None:
    class Decided(BradleyTerry):
        """Bradley and Terry's, with the loss of any likelihood."""

        name = "decided"
        loss = Likelihood.loss

    scores, batch = three_battles()
    decided = batch._replace(outcome=np.eye(3, dtype=np.float32)[[0, 2, 0]])
    expected, gradient = jax.value_and_grad(lambda scores: jnp.sum(BradleyTerry().loss({}, scores, decided)))(scores)
    loss, actual = jax.value_and_grad(lambda scores: jnp.sum(Decided().loss({}, scores, decided)))(scores)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(actual, gradient, atol=1e-6)


def test_a_likelihood_without_probabilities_is_none() -> None:
    class Nothing(Likelihood):
        """No outcome has a probability."""

        name = "nothing"

    with pytest.raises(TypeError, match="log_prob"):
        Nothing()


def test_a_name_is_taken_once() -> None:
    class Other(Likelihood):
        """Bradley and Terry's by name alone."""

        name = "bradley_terry"

    register_likelihood(BradleyTerry)
    with pytest.raises(InputError, match=r"routerjax.likelihoods: the name 'bradley_terry' is taken by"):
        register_likelihood(Other)
