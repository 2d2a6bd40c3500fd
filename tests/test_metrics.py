"""Curves and calibration: hand values, references written another way, and laws that hold for any scores."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from routerjax import metrics
from routerjax.errors import InputError

# Four prompts, gains +1, 0, -1, +2 in score order 0.9, 0.6, 0.6, 0.1: two of them tied.
WIN_PROB = np.array([0.6, 0.9, 0.1, 0.6])
STRONG = np.array([3.0, 4.0, 5.0, 2.0])
WEAK = np.array([3.0, 3.0, 3.0, 3.0])


def upstream_apgr(win_prob, quality_strong, quality_weak, num_thresholds=10):
    """RouteLLM's published procedure, written from its description with pandas."""
    _, edges = pd.qcut(win_prob, num_thresholds, retbins=True)
    rows = []
    for number, edge in enumerate(edges):
        chosen = win_prob > edge if number == len(edges) - 1 else win_prob >= edge
        rows.append((chosen.mean(), np.where(chosen, quality_strong, quality_weak).mean()))
    frame = pd.DataFrame(rows, columns=["share", "quality"]).sort_values(["share", "quality"])

    def area(quality):
        return np.trapezoid(quality, frame["share"])

    weak, strong = area(np.full(len(frame), quality_weak.mean())), area(np.full(len(frame), quality_strong.mean()))
    return (area(frame["quality"]) - weak) / (strong - weak)


def quality_at(threshold, win_prob, quality_strong, quality_weak):
    return np.where(win_prob >= threshold, quality_strong, quality_weak).mean()


@st.composite
def benchmarks(draw, *, min_gap=0.01):
    """Scores (often tied) and qualities of at most 12 prompts, with models that differ."""
    size = draw(st.integers(1, 12))
    column = st.lists(st.integers(0, 8), min_size=size, max_size=size)
    win_prob, strong, weak = (np.array(draw(column)) / 8.0 for _ in range(3))
    assume(abs(strong.mean() - weak.mean()) > min_gap)
    return win_prob, strong, weak


class TestCurve:
    def test_hand_values(self):
        curve = metrics.cost_quality_curve(WIN_PROB, STRONG, WEAK)
        np.testing.assert_allclose(curve.strong_share, [0.0, 0.25, 0.75, 1.0])
        np.testing.assert_allclose(curve.quality, [3.0, 3.25, 3.0, 3.5])
        np.testing.assert_allclose(curve.pgr, [0.0, 0.5, 0.0, 1.0], atol=1e-15)
        np.testing.assert_array_equal(curve.threshold, [math.inf, 0.9, 0.6, 0.1])
        assert {column.dtype for column in vars(curve).values()} == {np.dtype(np.float64)}

    @given(benchmarks())
    def test_every_point_is_what_its_threshold_gives(self, benchmark):
        win_prob, strong, weak = benchmark
        curve = metrics.cost_quality_curve(*benchmark)
        assert curve.strong_share[0] == 0.0
        assert curve.strong_share[-1] == 1.0
        assert sorted(set(win_prob), reverse=True) == curve.threshold[1:].tolist()
        for share, quality, threshold in zip(curve.strong_share, curve.quality, curve.threshold, strict=True):
            assert share == pytest.approx((win_prob >= threshold).mean())
            assert quality == pytest.approx(quality_at(threshold, win_prob, strong, weak))
        np.testing.assert_allclose(curve.pgr, (curve.quality - weak.mean()) / (strong.mean() - weak.mean()), atol=1e-9)

    def test_takes_jax_arrays(self):
        from_jax = metrics.cost_quality_curve(*map(jnp.asarray, (WIN_PROB, STRONG, WEAK)))
        assert from_jax.threshold[1] == np.float32(0.9)
        np.testing.assert_allclose(from_jax.pgr, [0.0, 0.5, 0.0, 1.0], atol=1e-7)

    @pytest.mark.parametrize(
        ("win_prob", "strong", "weak", "message"),
        [
            ([0.1, 0.2], [1.0], [0.0, 1.0], "quality_strong has 1"),
            ([0.1, np.nan], [1.0, 1.0], [0.0, 1.0], "win_prob must be finite; row 1 is nan"),
            ([0.1, 0.2], [1.0, 1.0], [-np.inf, 1.0], "quality_weak must be finite; row 0 is -inf"),
            ([], [], [], r"win_prob must be a non-empty vector.*\(0,\)"),
            ([[0.1, 0.2]], [1.0, 1.0], [0.0, 1.0], r"win_prob must be a non-empty vector.*\(1, 2\)"),
            ([0.1, 0.2], [1.0, 0.0], [0.0, 1.0], "same mean quality"),
        ],
    )
    @pytest.mark.parametrize("function", [metrics.cost_quality_curve, metrics.apgr_binned, metrics.rank_prompts])
    def test_bad_input(self, function, win_prob, strong, weak, message):
        with pytest.raises(InputError, match=message):
            function(np.array(win_prob), np.array(strong), np.array(weak))

    def test_equal_means_up_to_rounding_are_equal(self):
        quality = np.random.default_rng(0).random(1001)
        with pytest.raises(InputError, match="same mean quality"):
            metrics.cost_quality_curve(quality, quality, quality[::-1])


class TestApgr:
    def test_hand_value(self):
        # Trapezoids under 0, 1/2, 0, 1 at shares 0, 1/4, 3/4, 1.
        assert metrics.apgr(metrics.cost_quality_curve(WIN_PROB, STRONG, WEAK)) == pytest.approx(0.3125)

    @given(benchmarks())
    def test_a_constant_score_has_one_half(self, benchmark):
        _, strong, weak = benchmark
        assert metrics.apgr(metrics.cost_quality_curve(np.full(len(weak), 0.3), strong, weak)) == pytest.approx(0.5)

    @given(benchmarks())
    def test_only_the_order_of_scores_matters(self, benchmark):
        win_prob, strong, weak = benchmark
        expected = metrics.cost_quality_curve(win_prob, strong, weak)
        curve = metrics.cost_quality_curve(np.exp(3.0 * win_prob) - 7.0, strong, weak)
        np.testing.assert_array_equal(curve.pgr, expected.pgr)
        assert metrics.apgr(curve) == metrics.apgr(expected)
        assert metrics.cpt(curve, 0.5) == metrics.cpt(expected, 0.5)

    @given(benchmarks())
    def test_reversed_scores_have_the_complement(self, benchmark):
        win_prob, strong, weak = benchmark
        both = [metrics.apgr(metrics.cost_quality_curve(sign * win_prob, strong, weak)) for sign in (1.0, -1.0)]
        assert sum(both) == pytest.approx(1.0, abs=1e-9)

    def test_the_oracle_is_the_best_of_many(self):
        rng = np.random.default_rng(3)
        strong, weak = rng.random(50) + 0.2, rng.random(50)
        best = metrics.apgr(metrics.cost_quality_curve(strong - weak, strong, weak))
        others = [metrics.apgr(metrics.cost_quality_curve(rng.random(50), strong, weak)) for _ in range(200)]
        assert max(others) < best
        assert np.mean(others) == pytest.approx(0.5, abs=0.05)


class TestApgrBinned:
    # 11, 101 and 1001 prompts put quantile edges exactly on scores, where the side taken depends on rounding.
    @pytest.mark.parametrize("size", [11, 12, 72, 101, 1001, 1307])
    @pytest.mark.parametrize("num_thresholds", [1, 7, 10])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_equals_upstream_without_ties(self, size, num_thresholds, dtype):
        rng = np.random.default_rng(size)
        win_prob = rng.permutation(np.unique(rng.random(2 * size).astype(dtype)))[:size]
        strong, weak = (rng.random(size) < 0.8).astype(float), (rng.random(size) < 0.5).astype(float)
        expected = upstream_apgr(win_prob.astype(np.float64), strong, weak, num_thresholds)
        actual = metrics.apgr_binned(win_prob, strong, weak, num_thresholds=num_thresholds)
        assert actual == pytest.approx(expected, abs=1e-9)

    def test_many_bins_approach_the_exact_figure(self):
        rng = np.random.default_rng(0)
        win_prob, strong, weak = rng.random(400), rng.random(400) + 0.3, rng.random(400)
        exact = metrics.apgr(metrics.cost_quality_curve(win_prob, strong, weak))
        errors = [abs(metrics.apgr_binned(win_prob, strong, weak, num_thresholds=k) - exact) for k in (4, 399)]
        assert errors[1] < 1e-3 < errors[0]

    @pytest.mark.parametrize("score", [0.0, 0.5])
    def test_a_constant_score_has_one_half(self, score):
        assert metrics.apgr_binned(np.full(4, score), STRONG, WEAK) == pytest.approx(0.5)

    def test_bad_number_of_thresholds(self):
        with pytest.raises(InputError, match="num_thresholds must be at least 1; got 0"):
            metrics.apgr_binned(WIN_PROB, STRONG, WEAK, num_thresholds=0)


class TestCpt:
    @pytest.mark.parametrize(
        ("target", "share"),
        [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.125), (0.5, 0.25), (0.75, 0.9375), (1.0, 1.0), (1.01, None)],
    )
    def test_hand_values(self, target, share):
        assert metrics.cpt(metrics.cost_quality_curve(WIN_PROB, STRONG, WEAK), target) == share

    @given(benchmarks(), st.floats(0.01, 1.0))
    def test_is_the_first_crossing_of_the_interpolated_curve(self, benchmark, target):
        curve = metrics.cost_quality_curve(*benchmark)
        share = metrics.cpt(curve, target)
        assert share is not None
        assert np.interp(share, curve.strong_share, curve.pgr) == pytest.approx(target, abs=1e-9)
        below = np.interp(np.linspace(0.0, share, 50)[:-1], curve.strong_share, curve.pgr)
        assert (below < target + 1e-9).all()

    def test_a_constant_router_needs_the_share_it_asks_for(self):
        curve = metrics.cost_quality_curve(np.zeros(4), STRONG, WEAK)
        assert metrics.cpt(curve, 0.8) == pytest.approx(0.8)
        assert metrics.cost_saving(curve, 0.8) == pytest.approx(1.0)

    def test_cost_saving(self):
        curve = metrics.cost_quality_curve(WIN_PROB, STRONG, WEAK)
        assert metrics.cost_saving(curve, 0.5) == pytest.approx(2.0)
        assert metrics.cost_saving(0.25, 0.5) == pytest.approx(2.0)
        assert metrics.cost_saving(0.0, 0.5) == math.inf
        assert metrics.cost_saving(curve, 1.5) is None

    def test_bad_targets(self):
        curve = metrics.cost_quality_curve(WIN_PROB, STRONG, WEAK)
        with pytest.raises(InputError, match="must be finite"):
            metrics.cpt(curve, math.nan)
        with pytest.raises(InputError, match=r"above 0, such as 0\.5; got 0\.0"):
            metrics.cost_saving(curve, 0.0)


class TestAiq:
    def test_hand_value(self):
        # Of (0, 3), (1/4, 3.25), (3/4, 3), (1, 3.5) the third lies under the chord from the second to the last.
        curve = metrics.cost_quality_curve(WIN_PROB, STRONG, WEAK)
        assert metrics.aiq(curve) == pytest.approx((3.0 + 3.25) / 2 * 0.25 + (3.25 + 3.5) / 2 * 0.75)

    def test_quality_that_falls_is_held(self):
        # The best of the qualities, 2 at the share 1/2, is still had at any larger budget.
        curve = metrics.cost_quality_curve(np.array([1.0, 0.0]), np.array([3.0, -4.0]), np.array([0.0, 1.0]))
        assert metrics.aiq(curve) == pytest.approx((0.5 + 2.0) / 2 * 0.5 + 2.0 * 0.5)

    @settings(max_examples=50)
    @given(benchmarks())
    def test_equals_the_area_of_a_convex_hull(self, benchmark):
        curve = metrics.cost_quality_curve(*benchmark)
        points = np.stack([curve.strong_share, curve.quality], axis=1)
        floor = points[:, 1].min() - 1.0
        # Points held at their height up to the share 1 make the hull non-decreasing; a floor closes it below.
        held = np.stack([np.ones(len(points)), points[:, 1]], axis=1)
        corners = np.array([[0.0, floor], [1.0, floor]])
        hull = ConvexHull(np.concatenate([points, held, corners]))
        assert metrics.aiq(curve) == pytest.approx(hull.volume + floor, abs=1e-9)


class TestCalibration:
    def test_against_sklearn_on_hard_labels(self):
        rng = np.random.default_rng(0)
        win_prob, label = rng.random(300), rng.integers(0, 2, 300)
        assert metrics.log_loss(win_prob, label) == pytest.approx(sklearn_log_loss(label, win_prob))
        assert metrics.brier(win_prob, label) == pytest.approx(brier_score_loss(label, win_prob))

    @given(st.floats(0.001, 0.999), st.floats(0.0, 1.0))
    def test_a_soft_label_is_a_mixture_in_log_loss(self, win_prob, label):
        wins, losses = (metrics.log_loss(np.array([win_prob]), np.array([side])) for side in (1.0, 0.0))
        mixture = metrics.log_loss(np.array([win_prob]), np.array([label]))
        assert mixture == pytest.approx(label * wins + (1.0 - label) * losses)

    def test_a_saturated_probability_costs_a_finite_loss(self):
        assert metrics.log_loss(np.array([0.0]), np.array([1.0])) == pytest.approx(23 * math.log(2.0))
        assert metrics.log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(23 * math.log(2.0))
        assert metrics.log_loss(np.array([1.0]), np.array([1.0])) == pytest.approx(0.0, abs=1e-6)

    def test_brier_of_soft_labels(self):
        assert metrics.brier(np.array([0.5, 0.25]), np.array([0.5, 0.75])) == pytest.approx(0.125)

    def test_calibration_error_by_pandas(self):
        rng = np.random.default_rng(1)
        win_prob, label = rng.random(500), rng.integers(0, 3, 500) / 2.0
        # A probability on an edge belongs to the bin below it, 0 to the first.
        win_prob[:3] = [0.0, 0.2, 1.0]
        frame = pd.DataFrame({"win_prob": win_prob, "label": label})
        bins = pd.cut(frame["win_prob"], np.arange(11) / 10, include_lowest=True)
        means, sizes = frame.groupby(bins, observed=True).mean(), frame.groupby(bins, observed=True).size()
        expected = ((means["win_prob"] - means["label"]).abs() * sizes).sum() / 500
        assert metrics.expected_calibration_error(win_prob, label, num_bins=10) == pytest.approx(expected)

    @pytest.mark.parametrize("num_bins", [1, 10, 15])
    def test_reliability_by_sklearn(self, num_bins):
        rng = np.random.default_rng(2)
        # Nothing below 0.2, so that there are empty bins; the ends, and a border of bins.
        win_prob = np.concatenate([0.2 + 0.8 * rng.random(400), [0.0, 0.6, 1.0]])
        label = (rng.random(403) < win_prob).astype(float)
        bins = metrics.reliability(win_prob, label, num_bins=num_bins)
        mean_label, mean_prob = calibration_curve(label, win_prob, n_bins=num_bins)
        np.testing.assert_allclose(bins.label, mean_label)
        np.testing.assert_allclose(bins.win_prob, mean_prob)
        assert bins.count.sum() == 403
        assert bins.count.min() > 0
        np.testing.assert_allclose(np.average(bins.label, weights=bins.count), label.mean())

    def test_calibration_error_hand_values(self):
        win_prob, label = np.array([0.1, 0.2, 0.9]), np.array([0.0, 0.5, 0.5])
        # With two bins: |0.3 - 0.5| and |0.9 - 0.5|, over three prompts; with one: |1.2 - 1.0|.
        assert metrics.expected_calibration_error(win_prob, label, num_bins=2) == pytest.approx(0.2)
        assert metrics.expected_calibration_error(win_prob, label, num_bins=1) == pytest.approx(0.2 / 3)

    @pytest.mark.parametrize("function", [metrics.log_loss, metrics.brier, metrics.expected_calibration_error])
    @pytest.mark.parametrize(
        ("win_prob", "label", "message"),
        [
            ([0.5, 1.5], [0.0, 1.0], r"win_prob must lie in \[0, 1\]; row 1 is 1.5"),
            ([0.5, 0.5], [-0.1, 1.0], r"label must lie in \[0, 1\]; row 0 is -0.1"),
            ([0.5], [0.0, 1.0], "label has 2"),
        ],
    )
    def test_bad_input(self, function, win_prob, label, message):
        with pytest.raises(InputError, match=message):
            function(np.array(win_prob), np.array(label))

    def test_bad_number_of_bins(self):
        with pytest.raises(InputError, match="num_bins must be at least 1; got 0"):
            metrics.expected_calibration_error(np.array([0.5]), np.array([0.5]), num_bins=0)


@pytest.mark.parametrize("figure", [metrics.log_loss, metrics.brier, metrics.expected_calibration_error])
@pytest.mark.parametrize(
    ("win_prob", "kind"),
    [
        (np.array(["0.5"]), "ndarray of <U3"),
        ([0.5 + 1j], "list of complex128"),
        (np.ma.masked_array([0.5], mask=[True]), "MaskedArray of float64"),
        ([10**400], "list of object"),
    ],
)
def test_what_is_no_real_number_is_not_read_as_one(figure: Callable, win_prob: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"win_prob must hold real numbers, got {kind}"):
        figure(win_prob, [1.0])
