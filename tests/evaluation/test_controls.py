"""The controls: random is uniform, a constant knows nothing, no router is better than the oracle."""

import hypothesis
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from routerjax import data, evaluation, metrics

STRONG, WEAK = "big", "small"


def benchmark_of(strong: list[float], weak: list[float], prompts: tuple[str, ...] | None = None) -> data.Benchmark:
    prompts = prompts or tuple(f"question {row}" for row in range(len(strong)))
    quality = {STRONG: np.asarray(strong, float), WEAK: np.asarray(weak, float)}
    return data.Benchmark(name="b", prompts=prompts, quality=quality, strong=STRONG, weak=WEAK)


def controls_of(benchmark: data.Benchmark, seed: int = 0) -> dict[str, np.ndarray]:
    return evaluation.control_win_probs(benchmark, strong=STRONG, weak=WEAK, seed=seed)


def test_random_is_uniform_and_a_function_of_seed_and_prompt() -> None:
    benchmark = benchmark_of([1.0] * 3000, [0.0] * 3000)
    win_prob = controls_of(benchmark)["random"]
    assert scipy.stats.kstest(win_prob, "uniform").pvalue > 0.01
    reversed_rows = benchmark.select(np.arange(len(benchmark))[::-1])
    np.testing.assert_array_equal(controls_of(reversed_rows)["random"], win_prob[::-1])
    assert not np.any(controls_of(benchmark, seed=1)["random"] == win_prob)


def test_random_draws_stay_what_they_were() -> None:
    win_prob = controls_of(benchmark_of([1.0, 1.0], [0.0, 0.0], prompts=("hello", "Prove that pi is irrational.")))
    np.testing.assert_allclose(win_prob["random"], [0.450213581, 0.103234038], rtol=1e-6)
    np.testing.assert_array_equal(win_prob["constant"], [0.5, 0.5])


# Chances, grades, both beyond what a sigmoid tells apart and nearly the largest of a benchmark, negative ones, and so
# few levels that many gains are equal.
LEVELS = st.sampled_from([st.sampled_from([0.0, 1.0]), st.floats(0, 1), st.integers(-3, 3), st.integers(0, 100)])
SCALES = st.sampled_from([1.0, 1e-30, 1e-9, 1e6, 1e13])


@given(data=st.data(), scale=SCALES, num_prompts=st.sampled_from([1, 2, 9]))
def test_no_win_probability_is_better_than_the_oracle_on_any_scale(data, scale: float, num_prompts: int) -> None:
    levels = data.draw(LEVELS)
    columns = [np.asarray(data.draw(st.lists(levels, min_size=num_prompts, max_size=num_prompts))) for _ in range(2)]
    strong, weak = (scale * column.astype(float) for column in columns)
    gain = strong - weak
    hypothesis.assume(
        abs(gain.mean()) > 1e-9 * max(np.abs(strong).max(), np.abs(weak).max())
    )  # else nothing to recover
    oracle = controls_of(benchmark_of(strong, weak))["oracle"]
    assert ((oracle > 0) & (oracle < 1)).all()
    np.testing.assert_array_equal(scipy.stats.rankdata(oracle, "dense"), scipy.stats.rankdata(gain, "dense"))
    ties = data.draw(st.lists(st.integers(0, 3), min_size=num_prompts, max_size=num_prompts))
    shuffled = np.random.default_rng(data.draw(st.integers(0, 99))).random(num_prompts)
    by_gain = scipy.stats.rankdata(gain) / num_prompts
    for win_prob in (np.asarray(ties) / 3, shuffled, by_gain, 1 - by_gain, np.full(num_prompts, 0.5)):
        best, other = (metrics.apgr(metrics.cost_quality_curve(one, strong, weak)) for one in (oracle, win_prob))
        # APGR counts in gaps: of a negative one, the more is recovered the more is lost.
        lead = np.sign(gain.mean()) * (best - other)
        assert lead >= -1e-9 * np.abs(gain).max() / np.abs(gain.mean())


def test_an_oracle_tells_equal_prompts_apart() -> None:
    controls = controls_of(benchmark_of([1.0, 0.0], [0.0, 0.0], prompts=("same", "same")))
    assert controls["oracle"][0] > controls["oracle"][1]
    assert controls["random"][0] == controls["random"][1]


def test_the_oracle_says_the_true_win_probability() -> None:
    rng = np.random.default_rng(0)
    strong, weak = rng.random(50), rng.random(50)
    np.testing.assert_allclose(controls_of(benchmark_of(strong, weak))["oracle"], (1 + strong - weak) / 2, atol=1e-6)
    grades = controls_of(benchmark_of(9 * strong, 9 * weak))["oracle"]
    np.testing.assert_allclose(grades, 1 / (1 + np.exp(-9 * (strong - weak))), atol=1e-6)


def test_controls_in_an_evaluation() -> None:
    rng = np.random.default_rng(0)
    strong, weak = (rng.random(300) < chance for chance in (0.8, 0.5))
    benchmark = benchmark_of(strong, weak)
    result = evaluation.evaluate(controls_of(benchmark), benchmark, resamples=metrics.Resamples(200))
    random, constant, oracle = (result.routers[name] for name in ("random", "constant", "oracle"))
    assert random.apgr.low < 0.5 < random.apgr.high
    assert constant.apgr.value == 0.5
    np.testing.assert_allclose([constant.apgr.low, constant.apgr.high], 0.5, atol=1e-6)
    assert len(constant.curve.strong_share) == 2
    # The oracle sends the gains first, the losses last.
    gain = np.sort(benchmark.quality[STRONG] - benchmark.quality[WEAK])[::-1]
    best = np.concatenate([[0], np.cumsum(gain)]) / gain.sum()
    assert oracle.apgr.value == pytest.approx(np.trapezoid(best, dx=1 / len(gain)), abs=2e-3)
    assert oracle.of_oracle == evaluation.Figure(1, 1, 1)
    assert constant.of_oracle == evaluation.Figure(0, pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert random.of_oracle.low < 0 < random.of_oracle.high
    assert oracle.log_loss.value == pytest.approx(np.log(2) * np.mean(gain == 0), abs=1e-3)
