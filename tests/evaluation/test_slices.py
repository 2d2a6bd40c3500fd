"""Figures by domain and by length against plain numpy, on the same resamples."""

import numpy as np
import pytest

from routerjax import data, evaluation, metrics
from routerjax.evaluation.slices import evaluate_slices, strong_fraction

NAMES = {"strong": "big", "weak": "small"}


def make_benchmark(num_prompts: int = 203) -> data.Benchmark:
    rng = np.random.default_rng(0)
    return data.Benchmark(
        name="made up",
        prompts=tuple("x" * int(length) for length in rng.integers(1, 40, num_prompts)),
        quality={"big": rng.normal(8, 2, num_prompts), "small": rng.normal(7, 2, num_prompts)},
        domain=tuple(rng.choice(["law", "maths", "poetry"], num_prompts, p=[0.6, 0.3, 0.1])),
        **NAMES,
    )


BENCHMARK = make_benchmark()
WIN_PROB = {
    "fine": np.random.default_rng(1).random(len(BENCHMARK)),
    "coarse": np.random.default_rng(2).random(len(BENCHMARK)).round(1),
}


def by_numpy(rows: np.ndarray, sent: np.ndarray) -> list[float]:
    """Quality, over random and regret of the prompts at ``rows``, which may repeat."""
    strong, weak = (BENCHMARK.quality[name][rows] for name in ("big", "small"))
    calls, gain = sent[rows].sum(), np.sort(strong - weak)[::-1]
    quality = np.mean(weak + sent[rows] * (strong - weak))
    share = calls / len(rows)
    random = (1 - share) * weak.mean() + share * strong.mean()
    whole = int(calls)
    best = weak.mean() + (gain[:whole].sum() + (calls - whole) * gain[whole : whole + 1].sum()) / len(rows)
    return [quality, quality - random, best - quality]


def test_slices_are_those_of_numpy_on_the_same_resamples() -> None:
    num_samples = 150
    slices = evaluate_slices(WIN_PROB, BENCHMARK, **NAMES, resamples=metrics.Resamples(num_samples, seed=4))
    domain, length = np.array(BENCHMARK.domain), np.array([len(prompt) for prompt in BENCHMARK.prompts])
    masks = [domain == name for name in ("law", "maths", "poetry")]
    edges = np.quantile(length, [0.25, 0.5, 0.75], method="inverted_cdf")
    masks += [np.searchsorted(edges, length) == quarter for quarter in range(4)]
    assert [part.kind for part in slices] == ["domain"] * 3 + ["length"] * 4
    drawn = [
        np.repeat(np.arange(203), counts.astype(int)) for counts in metrics.Resamples(num_samples, seed=4).counts(203)
    ]
    for part, mask in zip(slices, masks, strict=True):
        assert part.num_prompts == mask.sum()
        assert part.quality_strong == BENCHMARK.quality["big"][mask].mean()
        for name, win_prob in WIN_PROB.items():
            sent, slice_figures = strong_fraction(win_prob, 0.5), part.routers[name]
            assert slice_figures.strong_share == pytest.approx(sent[mask].mean(), abs=1e-5)
            figures = (slice_figures.quality, slice_figures.over_random, slice_figures.regret)
            expected = by_numpy(np.flatnonzero(mask), sent)
            np.testing.assert_allclose([figure.value for figure in figures], expected, atol=1e-5)
            samples = np.array([by_numpy(rows[mask[rows]], sent) for rows in drawn])
            for figure, column in zip(figures, samples.T, strict=True):
                np.testing.assert_allclose([figure.low, figure.high], metrics.percentile_interval(column), atol=1e-4)


def test_the_oracle_has_no_regret_and_a_constant_gains_nothing_over_random() -> None:
    controls = evaluation.control_win_probs(BENCHMARK, **NAMES)
    for part in evaluate_slices(controls, BENCHMARK, **NAMES, resamples=metrics.Resamples(20, seed=0)):
        assert part.routers["oracle"].regret.value == pytest.approx(0, abs=1e-5)
        assert part.routers["oracle"].regret.high == pytest.approx(0, abs=1e-5)
        assert part.routers["constant"].over_random.value == pytest.approx(0, abs=1e-5)
        assert part.routers["constant"].strong_share == pytest.approx(0.5)


@pytest.mark.parametrize("name", list(WIN_PROB))
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_strong_fraction_gives_the_point_of_the_curve(name: str, share: float) -> None:
    strong, weak = BENCHMARK.quality["big"], BENCHMARK.quality["small"]
    sent = strong_fraction(WIN_PROB[name], share)
    assert sent.mean() == pytest.approx(share)
    curve = metrics.cost_quality_curve(WIN_PROB[name], strong, weak)
    expected = np.interp(share, curve.strong_share, curve.quality)
    assert np.mean(weak + sent * (strong - weak)) == pytest.approx(expected)


def test_lengths_that_most_prompts_share_make_fewer_slices() -> None:
    benchmark = data.Benchmark(
        name="short",
        prompts=("ab",) * 7 + ("abcd",),
        quality={"big": np.ones(8), "small": np.zeros(8)},
        **NAMES,
    )
    slices = evaluate_slices({"fine": np.linspace(0, 1, 8)}, benchmark, **NAMES, resamples=metrics.Resamples(5, seed=0))
    assert [(part.name, part.num_prompts) for part in slices] == [("2 to 2 characters", 7), ("3 to 4 characters", 1)]


def test_an_evaluation_has_slices_of_the_routers_alone() -> None:
    win_prob = WIN_PROB | evaluation.control_win_probs(BENCHMARK, **NAMES)
    result = evaluation.evaluate(win_prob, BENCHMARK, resamples=metrics.Resamples(10))
    assert {tuple(part.routers) for part in result.slices} == {("fine", "coarse")}
    described = evaluation.results_json([result])["benchmarks"][0]["slices"]
    assert described[0]["routers"]["fine"]["regret"]["value"] == result.slices[0].routers["fine"].regret.value
