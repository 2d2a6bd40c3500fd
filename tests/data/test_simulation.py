"""The simulated arena: what it says is known is what its battles show."""

import numpy as np
import pytest

from routerjax import InputError, data
from routerjax.data import simulation


def test_probabilities_are_davidsons() -> None:
    margin = np.linspace(-4, 4, 9)
    chances = simulation.outcome_probabilities(margin)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    strengths = np.exp(margin)  # of a, against b's 1
    expected = strengths / (strengths + 1 + np.sqrt(strengths))
    np.testing.assert_allclose(chances[:, 0], expected)
    np.testing.assert_allclose(chances, chances[::-1, ::-1])


def test_battles_follow_the_known_probabilities() -> None:
    # One pair on the test prompts has known win probabilities; the same templates make the training prompts.
    arena = simulation.simulate_arena(num_prompts=4000, num_test_prompts=2000, battles_per_prompt=6, seed=3)
    battles = arena.preferences
    large, small = (battles.models.index(name) for name in (simulation.STRONG, simulation.WEAK))
    forward = (battles.model_a == large) & (battles.model_b == small)
    backward = (battles.model_a == small) & (battles.model_b == large)
    label = np.concatenate([battles.label[forward], 1 - battles.label[backward]])
    assert len(label) > 1000
    error = np.hypot(label.std() / np.sqrt(len(label)), arena.win_prob.std() / np.sqrt(len(arena.win_prob)))
    assert abs(label.mean() - arena.win_prob.mean()) < 4 * error
    ties = battles.outcome[:, 1].mean()
    assert 0.2 < ties < 1 / 3


def test_qualities_are_the_chances_and_prompts_are_different() -> None:
    arena = data.simulate_arena(num_prompts=300, num_test_prompts=100, seed=1)
    quality = arena.benchmark.quality
    np.testing.assert_allclose(quality["sim-large"] + quality["sim-small"], 1)
    np.testing.assert_array_equal(arena.win_prob, quality["sim-large"])
    assert len(set(arena.benchmark.prompts)) == 100
    assert len(arena.preferences.unique_prompts) == 300
    assert not set(arena.benchmark.prompts) & set(arena.preferences.prompts)
    assert len(arena.preferences) == 1200
    # In small talk the small model holds its own; in mathematics it does not.
    domain = np.asarray(arena.benchmark.domain)
    assert arena.win_prob[domain == "small talk"].mean() < 0.5 < arena.win_prob[domain == "mathematics"].mean()


def test_the_seed_decides() -> None:
    one, again, other = (data.simulate_arena(num_prompts=50, num_test_prompts=20, seed=seed) for seed in (1, 1, 2))
    assert one.preferences.prompts == again.preferences.prompts
    np.testing.assert_array_equal(one.preferences.outcome, again.preferences.outcome)
    assert one.preferences.prompts != other.preferences.prompts


def test_bad_sizes() -> None:
    with pytest.raises(InputError, match="num_prompts must be positive, got 0"):
        data.simulate_arena(num_prompts=0)
    with pytest.raises(InputError, match="do not hold 10000000 different prompts"):
        simulation._draw_prompts(AlwaysFirst(), 10_000_000)


class AlwaysFirst:
    """Always the first choice: the templates hold one prompt."""

    def integers(self, high: int) -> int:
        return 0
