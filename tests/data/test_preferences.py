"""Battles: validation that names row and column, sides, splits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax import InputError, data

HARD = np.eye(3)


def battles(count: int = 6, **changes: object) -> data.Preferences:
    rng = np.random.default_rng(0)
    columns = {
        "prompts": [f"prompt {row // 2}" for row in range(count)],
        "model_a": ["x", "y", "z"] * (count // 3),
        "model_b": ["y", "z", "x"] * (count // 3),
        "outcome": HARD[rng.integers(3, size=count)],
    }
    return data.Preferences.from_names(**columns | changes)


def test_columns() -> None:
    outcome = np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.25, 0.5, 0.25], [0.5, 0, 0.5], [0.2, 0.3, 0.5]])
    made = battles(outcome=outcome)
    assert made.models == ("x", "y", "z")
    assert made.model_b.tolist() == [1, 2, 0, 1, 2, 0]
    np.testing.assert_allclose(made.label, [1, 0.5, 0, 0.5, 0.5, 0.35], rtol=1e-6)
    assert made.outcome.dtype == made.weight.dtype == np.float32
    assert made.unique_prompts == ("prompt 0", "prompt 1", "prompt 2")
    assert made.prompt_index.tolist() == [0, 0, 1, 1, 2, 2]
    chosen = made.select(np.asarray([4, 1]))
    assert chosen.prompts == ("prompt 2", "prompt 0")
    assert chosen.models == made.models
    assert len(made.select(np.asarray([True] * 2 + [False] * 4))) == 2
    assert made.select(np.asarray([0, 3])).without_unused_models().models == ("x", "y")
    assert made.select(np.asarray([0])).without_unused_models().models == ("x", "y")


def test_both_answers_bad_is_an_outcome_of_its_own() -> None:
    outcome = np.asarray([[0.5, 0.2, 0.1, 0.2], [0, 0, 0, 1], [0, 1, 0, 0]])
    made = data.Preferences.from_names(["p", "p", "q"], ["x", "y", "x"], ["y", "x", "z"], outcome)
    np.testing.assert_allclose(made.label, [0.7, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(data.to_batch(made, np.zeros((2, 4))).label, made.label)
    turned = made.exchange_sides(np.asarray([True, True, False]))
    np.testing.assert_allclose(turned.outcome, outcome[:, [2, 1, 0, 3]], rtol=1e-6)
    assert [made.models[column] for column in turned.model_a] == ["y", "x", "x"]
    # Each order counts half: (.5, .2, .1, .2), and all on both bad.
    merged = data.merge_both_orders(made)
    np.testing.assert_allclose(merged.outcome, [[0.25, 0.1, 0.05, 0.6], [0, 1, 0, 0]], rtol=1e-6)


def test_sources_that_tell_bad_ties_and_others(caplog: pytest.LogCaptureFixture) -> None:
    tells = battles(outcome=np.eye(4)[[0, 1, 2, 3, 3, 1]])
    decided, tied = battles(outcome=HARD[[0, 0, 2, 0, 2, 2]]), battles(outcome=HARD[[0, 1, 2, 0, 1, 1]])
    both = data.concatenate([tells, decided])
    np.testing.assert_array_equal(both.outcome[:6], tells.outcome)
    np.testing.assert_array_equal(both.outcome[6:], np.pad(decided.outcome, ((0, 0), (0, 1))))
    assert not caplog.messages
    mixed = data.concatenate([tells, tied])
    np.testing.assert_array_equal(mixed.outcome, np.concatenate([HARD[[0, 1, 2, 1, 1, 1]], tied.outcome]))
    np.testing.assert_array_equal(mixed.label, np.concatenate([tells.label, tied.label]))
    assert caplog.messages[0].startswith("2 battles whose answers are both bad become ties like others, since 3 ties")


def test_rounded_probabilities_are_normalised() -> None:
    made = battles(3, outcome=np.full((3, 3), 0.3334))
    np.testing.assert_allclose(made.outcome.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["a", "b", "  ", "", "c", "d"]}, r"row 2: column prompt must be text that is not empty.*1 more"),
        ({"model_b": ["y", "z", "x", "x", "z", "x"]}, "row 3: column model_b must be another model than model_a"),
        ({"outcome": np.full((6, 3), 0.5)}, "row 0: column outcome must be probabilities that sum to 1"),
        ({"outcome": np.full((6, 3), np.nan)}, "row 0: column outcome"),
        ({"outcome": np.tile([1.5, -0.5, 0], (6, 1))}, "row 0: column outcome"),
        ({"outcome": HARD}, r"outcome must have shape \(6, 3\), one row for each prompt, got \(3, 3\)"),
        ({"weight": np.asarray([1, 1, np.nan, 1, 1, 1])}, "row 2: column weight must be finite and not negative"),
        ({"weight": np.asarray([1, -1, 1, 1, 1, 1])}, "row 1: column weight"),
        ({"weight": np.zeros(6)}, "weight is 0 in every row"),
        ({"models": ["x", "yy", "z"]}, r"row 1: column model_a: 'y' is not one of the models \(did you mean 'yy'\?\)"),
        ({"models": ["x", "y", "z", "z"]}, "models must be different names"),
    ],
)
def test_what_is_no_battle(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        battles(**changes)


def test_no_rows() -> None:
    with pytest.raises(InputError, match="no battles: expected at least one row"):
        data.Preferences.from_names([], [], [], np.zeros((0, 3)))


@given(seed=st.integers(0, 1000))
def test_swapped_sides_say_the_same(seed: int) -> None:
    made = battles(30)
    swapped = data.swap_sides(made, seed=seed)
    assert swapped.prompts == made.prompts
    moved = swapped.model_a != made.model_a
    np.testing.assert_array_equal(np.where(moved, swapped.model_b, swapped.model_a), made.model_a)
    np.testing.assert_allclose(np.where(moved, 1 - swapped.label, swapped.label), made.label)
    np.testing.assert_array_equal(data.swap_sides(made, seed=seed).model_a, swapped.model_a)


def test_half_of_the_sides_are_swapped() -> None:
    made = battles(3000)
    assert 0.45 < np.mean(data.swap_sides(made, seed=1).model_a != made.model_a) < 0.55


def test_both_orders_become_one_battle() -> None:
    made = data.Preferences.from_names(
        ["p", "q", "p", "p", "p", "q"],
        ["x", "x", "x", "y", "y", "x"],
        ["y", "y", "z", "x", "x", "y"],
        np.asarray([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0.8, 0.1, 0.1], [0, 0.5, 0.5], [0, 0, 1]]),
        np.asarray([2, 1, 5, 1, 3, 1]),
    )
    merged = data.merge_both_orders(made)
    # q was judged twice, but in one order; p's x against z in one.
    assert merged.prompts == ("p", "q", "p", "q")
    assert [merged.models[row] for row in merged.model_b] == ["y", "y", "z", "y"]
    # y first: (.8, .1, .1) once and (0, .5, .5) three times are (.2, .4, .4); of x first and that the other way round,
    # the mean.
    np.testing.assert_allclose(merged.outcome, [[0.7, 0.2, 0.1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)
    assert merged.weight.tolist() == [3, 1, 5, 1]


def test_a_judge_that_only_sees_the_position_says_nothing() -> None:
    first = battles(300, outcome=np.tile(HARD[0], (300, 1)))
    other_order = dataclasses.replace(first, model_a=first.model_b, model_b=first.model_a)
    merged = data.merge_both_orders(data.concatenate([first, other_order]))
    np.testing.assert_array_equal(merged.outcome, np.tile([0.5, 0, 0.5], (300, 1)))
    assert merged.prompts == first.prompts
    np.testing.assert_array_equal(merged.weight, first.weight)
    np.testing.assert_array_equal(data.merge_both_orders(merged).outcome, merged.outcome)


def test_an_order_of_no_weight_was_not_judged() -> None:
    made = data.Preferences.from_names(["p", "p"], ["x", "y"], ["y", "x"], HARD[[0, 0]], np.asarray([1, 0]))
    merged = data.merge_both_orders(made)
    assert merged.weight.tolist() == [1, 0]
    np.testing.assert_array_equal(merged.outcome, made.outcome)


def test_no_prompt_is_on_both_sides() -> None:
    made = battles(3000)
    train, validation = data.split_by_prompt(made, validation_fraction=0.2, seed=0)
    assert len(train) + len(validation) == 3000
    assert not set(train.prompts) & set(validation.prompts)
    assert 0.16 < len(validation.unique_prompts) / 1500 < 0.24
    # A prompt's side is its own: what else is in the set does not matter.
    half, _ = data.split_by_prompt(made.select(np.arange(0, 3000, 4)), validation_fraction=0.2, seed=0)
    assert set(half.prompts) <= set(train.prompts)
    other, _ = data.split_by_prompt(made, validation_fraction=0.2, seed=1)
    assert set(other.prompts) != set(train.prompts)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside(fraction: float) -> None:
    with pytest.raises(InputError, match=r"validation_fraction must be in \(0, 1\)"):
        data.split_by_prompt(battles(), validation_fraction=fraction, seed=0)


def test_a_split_with_an_empty_side() -> None:
    with pytest.raises(InputError, match="of 3 prompts leaves one side empty"):
        data.split_by_prompt(battles(), validation_fraction=1e-9, seed=0)


def test_concatenated_vocabularies() -> None:
    other = data.Preferences.from_names(["q"], ["a"], ["y"], HARD[:1])
    both = data.concatenate([battles(), other])
    assert both.models == ("a", "x", "y", "z")
    assert both.models[both.model_a[0]] == "x"
    assert (both.models[both.model_a[6]], both.models[both.model_b[6]]) == ("a", "y")


def test_one_class_only_is_refused_however_the_sides_lie() -> None:
    always = data.Preferences.from_names(["p", "q"], ["x", "y"], ["y", "x"], HARD[[0, 2]])
    with pytest.raises(InputError, match=r"one class only: every battle of x against y has the label 1\.0"):
        data.require_both_outcomes(always)
    data.require_both_outcomes(data.Preferences.from_names(["p", "q"], ["x", "y"], ["y", "x"], HARD[[0, 0]]))


def test_model_index() -> None:
    assert data.model_index(("a", "b"), "b") == 1
    with pytest.raises(InputError, match=r"'gpt4' is not one of the 2 models \(did you mean 'gpt-4'\?\)"):
        data.model_index(("gpt-4", "claude"), "gpt4")


def test_a_batch_has_each_prompt_once() -> None:
    made = battles()
    embedding = np.arange(12.0).reshape(3, 4)
    batch = data.to_batch(made, embedding)
    np.testing.assert_array_equal(batch.query["embedding"][batch.query_index][:, 0], [0, 0, 4, 4, 8, 8])
    assert batch.query["prompt_id"].shape == (3, 2)
    np.testing.assert_allclose(batch.label, made.label)
    with pytest.raises(InputError, match=r"one row for each of the 3 different prompts, got shape \(6, 4\)"):
        data.to_batch(made, np.zeros((6, 4)))
    for infinite in (np.inf, 1e300):  # in float32
        with pytest.raises(InputError, match=r"the embedding of prompt 1 is not finite \(1 such rows\)"):
            data.to_batch(made, np.where(embedding == 5, infinite, embedding))


@pytest.mark.parametrize("outcome", [(0, 1, 0), (0.5, 0, 0.5), (0.25, 0.5, 0.25)])
def test_battles_that_are_never_decided_teach_nothing(outcome: tuple[float, float, float]) -> None:
    undecided = np.tile(outcome, (6, 1))
    with pytest.raises(InputError, match="one class only: every battle is a tie or a coin flip"):
        data.require_both_outcomes(battles(outcome=undecided))
    decided = undecided.copy()
    decided[3] = HARD[0]
    data.require_both_outcomes(battles(outcome=decided))
    # A battle that counts nothing decides nothing.
    with pytest.raises(InputError, match="one class only"):
        data.require_both_outcomes(battles(outcome=decided, weight=np.asarray([1, 1, 1, 0, 1, 1])))


@pytest.mark.parametrize("name", ["", " ", "x ", "\ty"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="row 4: column model_b must be a name that is not empty, without white space"):
        battles(model_b=["y", "z", "x", "y", name, "x"])


@pytest.mark.parametrize(
    ("prompts", "model_a", "message"),
    [
        ([3], ["x"], "row 0: a prompt must be text, got 3"),
        ("p", ["x"], "prompts must be a sequence of texts, got one text"),
        ((text for text in ["p"]), ["x"], "prompts must be a sequence of texts, such as a list, got generator"),
        (["p"], [None], "row 0: column model_a must be a model's name, got None"),
        (["p"], [3], "row 0: column model_a must be a model's name, got 3"),
    ],
)
def test_prompts_and_models_are_texts(prompts: object, model_a: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.Preferences.from_names(prompts, model_a, ["y"], np.array([[1, 0, 0]]))


def test_a_benchmark_of_one_text_is_none() -> None:
    with pytest.raises(InputError, match="prompts must be a sequence of texts, got one text"):
        data.Benchmark(name="b", prompts="ab", quality={"x": np.zeros(2), "y": np.ones(2)})
    with pytest.raises(InputError, match="benchmark b: quality of x must hold real numbers, got list of <U1"):
        data.Benchmark(name="b", prompts=("a", "b"), quality={"x": ["0", "1"], "y": np.ones(2)})


def test_a_number_is_shown_as_the_number_that_it_is() -> None:
    with pytest.raises(InputError, match=r"column weight must be .*, got -2\.0$"):
        data.Preferences.from_names(["p"], ["x"], ["y"], np.array([[1, 0, 0]]), weight=np.array([-2.0], np.float32))
