"""The bootstrap against the public figures on data in which each prompt is repeated as often as it was drawn."""

import math

import numpy as np
import pytest

from routerjax import metrics
from routerjax.errors import InputError
from routerjax.metrics import Resamples

TARGETS = (0.5, 0.8)


def make_benchmark(size, *, kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "correctness":
        strong, weak = (rng.random(size) < 0.8).astype(float), (rng.random(size) < 0.6).astype(float)
    else:
        strong, weak = rng.normal(9.2, 1.0, size), rng.normal(8.3, 1.0, size)
    noise = rng.random(size)
    return (
        {"distinct": noise, "tied": np.round(noise + 0.1 * (strong - weak), 1), "constant": np.ones(size)},
        strong,
        weak,
    )


def by_numpy(counts, win_prob, strong, weak):
    """The public float64 figures of the repeated prompts."""
    repeated = [np.repeat(column, counts.astype(int)) for column in (win_prob, strong, weak)]
    curve = metrics.cost_quality_curve(*repeated)
    binned = metrics.apgr_binned(*repeated)
    return [metrics.apgr(curve), binned, *(metrics.cpt(curve, target) for target in TARGETS)]


@pytest.mark.parametrize("kind", ["correctness", "ratings"])
@pytest.mark.parametrize("router", ["distinct", "tied", "constant"])
@pytest.mark.parametrize("size", [50, 14037])
def test_figures_of_a_resample_are_those_of_repeated_prompts(kind, router, size):
    win_prob, strong, weak = make_benchmark(size, kind=kind)
    shares = np.linspace(0.0, 1.0, 51).tolist()
    resamples, columns = metrics.Resamples(3, seed=3), (win_prob[router], strong, weak)
    samples = metrics.bootstrap({"it": columns[0]}, strong, weak, resamples=resamples, targets=TARGETS, shares=shares)
    sample = samples["it"]
    for row, counts in enumerate(resamples.counts(size)):
        actual = [sample.apgr[row], sample.apgr_binned[row], *(sample.cpt[target][row] for target in TARGETS)]
        np.testing.assert_allclose(actual, by_numpy(counts, *columns), atol=1e-12)
        curve = metrics.cost_quality_curve(*(np.repeat(column, counts.astype(int)) for column in columns))
        np.testing.assert_allclose(sample.pgr[row], np.interp(shares, curve.strong_share, curve.pgr), atol=1e-12)


def test_pgr_samples_stand_beside_the_others():
    win_prob, strong, weak = make_benchmark(60, kind="ratings")
    shares = (0.0, 0.3, 1.0)
    samples = metrics.bootstrap(win_prob, strong, weak, resamples=Resamples(200), shares=shares)
    for sample in samples.values():
        assert sample.pgr.shape == (200, 3)
        np.testing.assert_allclose(sample.pgr[:, [0, 2]], np.tile([0.0, 1.0], (200, 1)), atol=1e-6)
    # Sample 7 again, by itself: the same prompts as those behind its APGR.
    counts = list(metrics.Resamples(8).counts(60))[7]
    curve = metrics.cost_quality_curve(
        *(np.repeat(column, counts.astype(int)) for column in (win_prob["distinct"], strong, weak))
    )
    expected = [metrics.apgr(curve), np.interp(0.3, curve.strong_share, curve.pgr)]
    np.testing.assert_allclose([samples["distinct"].apgr[7], samples["distinct"].pgr[7, 1]], expected, atol=1e-5)
    # One score for all prompts: PGR is the share in every resample.
    np.testing.assert_allclose(samples["constant"].pgr[:, 1], 0.3, atol=1e-6)


def test_counts_are_draws_with_replacement():
    counts = np.stack(list(metrics.Resamples(2000).counts(20)))
    assert (counts.sum(axis=1) == 20).all()
    # Multinomial: mean 1, variance 1 - 1/20.
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.1)
    np.testing.assert_allclose(counts.var(axis=0), 0.95, atol=0.15)


def test_agrees_with_a_plain_numpy_bootstrap():
    win_prob, strong, weak = make_benchmark(200, kind="ratings")
    samples = metrics.bootstrap({"mf": win_prob["distinct"]}, strong, weak, resamples=Resamples(2000))["mf"]
    rng = np.random.default_rng(7)
    plain = [
        by_numpy(rng.multinomial(200, np.full(200, 1 / 200)), win_prob["distinct"], strong, weak) for _ in range(2000)
    ]
    plain = np.array(plain)
    columns = samples.apgr, samples.apgr_binned, samples.cpt[0.5], samples.cpt[0.8]
    for actual, expected in zip(columns, plain.T, strict=True):
        assert actual.mean() == pytest.approx(expected.mean(), abs=0.01)
        assert actual.std() == pytest.approx(expected.std(), rel=0.1)
        low, high = metrics.percentile_interval(actual)
        np.testing.assert_allclose([low, high], np.quantile(expected, [0.025, 0.975]), atol=0.03)


def test_routers_are_paired_and_reproducible():
    win_prob, strong, weak = make_benchmark(60, kind="ratings")
    routers = {"first": win_prob["distinct"], "second": win_prob["tied"], "same": 2.0 * win_prob["distinct"]}
    samples = metrics.bootstrap(routers, strong, weak, resamples=Resamples(300, seed=5))
    assert list(samples) == list(routers)
    np.testing.assert_array_equal(samples["first"].apgr, samples["same"].apgr)
    # The same resamples in another call with other company, and as a prefix of a longer one.
    alone = metrics.bootstrap({"second": win_prob["tied"]}, strong, weak, resamples=Resamples(400, seed=5))["second"]
    np.testing.assert_allclose(alone.apgr[:300], samples["second"].apgr, atol=1e-6)
    other = metrics.bootstrap({"second": win_prob["tied"]}, strong, weak, resamples=Resamples(300, seed=6))["second"]
    assert not np.allclose(other.apgr, samples["second"].apgr)
    # Pairing is what makes the difference of similar routers certain.
    nearly = metrics.bootstrap(
        {"first": win_prob["distinct"], "nearly": np.round(win_prob["distinct"], 2)},
        strong,
        weak,
        resamples=Resamples(300),
    )
    assert (nearly["first"].apgr - nearly["nearly"].apgr).std() < 0.2 * nearly["first"].apgr.std()


def test_the_interval_of_a_random_router_covers_one_half():
    rng = np.random.default_rng(0)
    strong, weak = rng.random(300) + 0.2, rng.random(300)
    routers = {str(number): rng.random(300) for number in range(40)}
    samples = metrics.bootstrap(routers, strong, weak, resamples=Resamples(400))
    intervals = [metrics.percentile_interval(sample.apgr) for sample in samples.values()]
    covered = sum(low <= 0.5 <= high for low, high in intervals)
    # A right 95 % interval covers 38 of 40 on average, and fewer than 32 once in ten thousand times.
    assert covered >= 32
    assert np.mean([high - low for low, high in intervals]) < 0.4


def test_a_target_that_is_not_reached():
    win_prob, strong, weak = make_benchmark(100, kind="ratings")
    samples = metrics.bootstrap(
        {"constant": win_prob["constant"]}, strong, weak, resamples=Resamples(200), targets=(0.5, 1.5)
    )
    constant = samples["constant"]
    assert list(constant.cpt) == [0.5, 1.5]
    np.testing.assert_allclose(constant.cpt[0.5], 0.5, atol=1e-6)
    assert np.isfinite(constant.cpt[0.5]).all()
    assert (constant.cpt[1.5] == math.inf).all()
    assert metrics.percentile_interval(constant.cpt[1.5]) == (math.inf, math.inf)


def test_a_target_that_some_resamples_reach():
    # Gains 1, 1, -1/2. The harmful prompt drawn once: PGR reaches 2 / 1.5. Never drawn, or alone: PGR stays within 1.
    # Drawn twice: the gap is 0 and PGR undefined, which is not reached either.
    strong, weak = np.array([1.0, 1.0, 0.5]), np.array([0.0, 0.0, 1.0])
    samples = metrics.bootstrap({"oracle": strong - weak}, strong, weak, resamples=Resamples(500), targets=(1.2,))[
        "oracle"
    ]
    assert np.isfinite(samples.cpt[1.2]).mean() == pytest.approx(4 / 9, abs=0.07)
    assert np.isnan(samples.apgr).mean() == pytest.approx(2 / 9, abs=0.07)
    # Of the defined resamples 4/9 / (7/9) reach it: the interval's upper end says that many do not.
    assert metrics.percentile_interval(samples.cpt[1.2]).high == math.inf


def test_resamples_without_a_gap_are_undefined_and_left_out():
    strong, weak = np.array([1.0, 0.5]), np.array([0.0, 0.5])
    samples = metrics.bootstrap({"router": np.array([0.9, 0.1])}, strong, weak, resamples=Resamples(400))["router"]
    # Only the prompt without a gain drawn: one quarter of the resamples.
    undefined = np.isnan(samples.apgr)
    assert undefined.mean() == pytest.approx(0.25, abs=0.08)
    np.testing.assert_array_equal(undefined, np.isnan(samples.cpt[0.5]))
    assert np.isfinite(samples.cpt[0.5]).mean() == pytest.approx(1.0 - undefined.mean())
    assert metrics.percentile_interval(samples.apgr) == (0.5, 0.75)


def test_percentile_interval():
    values = np.arange(1001.0)[::-1]
    assert metrics.percentile_interval(values) == (25.0, 975.0)
    assert metrics.percentile_interval(values, level=0.5) == (250.0, 750.0)
    assert metrics.percentile_interval(np.array([3.0])) == (3.0, 3.0)
    assert metrics.percentile_interval(np.append(np.arange(99.0), math.inf)).high == 97.0
    assert metrics.percentile_interval(np.append(np.arange(95.0), [math.inf] * 5)) == (2.0, math.inf)
    assert np.isnan(metrics.percentile_interval(np.full(3, np.nan))).all()
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        metrics.percentile_interval(values, level=95.0)


def test_bad_input():
    win_prob, strong, weak = make_benchmark(10, kind="ratings")
    with pytest.raises(InputError, match="at least one router"):
        metrics.bootstrap({}, strong, weak)
    for num_samples in (0, -3, 10**9):
        with pytest.raises(InputError, match=f"num_samples.* must be in 1 to 100,000; .*; got {num_samples}"):
            metrics.Resamples(num_samples)
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"seed must be in 0 to 4294967295, got {seed}"):
            metrics.Resamples(seed=seed)
    with pytest.raises(InputError, match="PGR targets must be finite"):
        metrics.bootstrap(win_prob, strong, weak, targets=(math.nan,))
    with pytest.raises(InputError, match=r"strong shares must be at least one number in \[0, 1\].*got \[1.5\]"):
        metrics.bootstrap(win_prob, strong, weak, shares=(1.5,))
    with pytest.raises(InputError, match="strong shares must be at least one number"):
        metrics.bootstrap(win_prob, strong, weak, shares=())
    with pytest.raises(InputError, match="columns must have one row for each prompt"):
        metrics.bootstrap({"short": np.ones(3)}, strong, weak)
