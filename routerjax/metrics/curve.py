"""The exact cost-quality curve of a router, and the figures read off it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from routerjax.errors import InputError
from routerjax.metrics.columns import Column, check_columns, quality_gain, rounding_of_means


@dataclass(frozen=True)
class Curve:
    """Cost-quality curve of a router over every threshold; float64 ``[points]``, from the share 0 to the share 1.

    Attributes:
        strong_share: share of prompts with ``win_prob >= threshold``, strictly increasing, 0 first and 1 last.
        quality: mean quality of the answers at that share.
        pgr: performance gap recovered, ``(quality - weak) / (strong - weak)``: 0 first, 1 last, not bounded between.
        threshold: strictly decreasing, ``inf`` first, the lowest win probability last.
    """

    strong_share: Float[np.ndarray, "points"]
    quality: Float[np.ndarray, "points"]
    pgr: Float[np.ndarray, "points"]
    threshold: Float[np.ndarray, "points"]


@dataclass(frozen=True)
class Ranking:
    """Prompts of one router from the highest score to the lowest, sorted once for any number of curves.

    Attributes:
        order: int ``[prompts]``, the prompt at each rank.
        last: int ``[scores]``, the rank at which the prompts of each distinct score end.
        score: float64 ``[scores]``, falling.
        weak: float64 ``[prompts]``, quality of the weak model's answer at each rank.
        gain: float64 ``[prompts]``, strong minus weak quality at each rank.
        smallest_gap: a mean gain of no more than this is rounding.
    """

    order: Int[np.ndarray, "prompts"]
    last: Int[np.ndarray, "scores"]
    score: Float[np.ndarray, "scores"]
    weak: Float[np.ndarray, "prompts"]
    gain: Float[np.ndarray, "prompts"]
    smallest_gap: float

    def curve(self, counts: Float[np.ndarray, "prompts"] | None = None) -> Curve:
        """Return the exact curve with each prompt taken ``counts`` times, by prompt and not by rank; by default once.

        PGR is NaN where the mean qualities are equal, and a score of which no prompt is taken repeats a point.
        """
        count = np.ones(len(self.order)) if counts is None else counts[self.order]
        calls, gained = (np.append(0.0, np.cumsum(column)[self.last]) for column in (count, count * self.gain))
        mean_gain = gained / calls[-1]
        has_gap = abs(mean_gain[-1]) > self.smallest_gap
        return Curve(
            strong_share=calls / calls[-1],
            quality=np.average(self.weak, weights=count) + mean_gain,
            # A quotient is correctly rounded, so that a curve which touches a target exactly is seen to.
            pgr=gained / gained[-1] if has_gap else np.full_like(gained, math.nan),
            threshold=np.append(math.inf, self.score),
        )


def rank_prompts(win_prob: Column, quality_strong: Column, quality_weak: Column) -> Ranking:
    """Sort the prompts of one router; arguments and errors are those of :func:`cost_quality_curve`."""
    win_prob, quality_strong, quality_weak = check_columns(
        {"win_prob": win_prob, "quality_strong": quality_strong, "quality_weak": quality_weak}
    )
    gain = quality_gain(quality_strong, quality_weak)
    order = np.argsort(-win_prob, kind="stable")
    score = win_prob[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    smallest_gap = rounding_of_means(quality_strong, quality_weak)
    return Ranking(order, last, score[last], quality_weak[order], gain[order], smallest_gap)


def cost_quality_curve(win_prob: Column, quality_strong: Column, quality_weak: Column) -> Curve:
    """Exact curve over every distinct threshold: prompts with equal scores move together.

    ``quality(t) = mean(where(win_prob >= t, quality_strong, quality_weak))``

    Args:
        win_prob: ``[prompts]``, any finite score of which a higher one means the strong model; only its order matters.
        quality_strong: ``[prompts]``, quality of the strong model's answers, in any unit.
        quality_weak: ``[prompts]``, the weak model's, in the same unit.

    Returns:
        One point for each distinct score, after the point of share 0.

    Raises:
        InputError: columns of different lengths, empty or not finite, or two models of equal mean quality.

    Example:
        >>> curve = cost_quality_curve(np.array([0.9, 0.2, 0.2]), np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0]))
        >>> curve.pgr.tolist(), curve.threshold.tolist()
        ([0.0, 0.5, 1.0], [inf, 0.9, 0.2])

    Reference:
        RouteLLM (arXiv 2406.18665), section 3.2, equations 3 and 4.
    """
    return rank_prompts(win_prob, quality_strong, quality_weak).curve()


def apgr(curve: Curve) -> float:
    """Average performance gap recovered: area under PGR over the strong share, by trapezoids.

    0.5 for a router that knows nothing (one score for all prompts, or random in expectation); it can leave [0, 1].

    Example:
        >>> apgr(cost_quality_curve(np.array([0.9, 0.1]), np.array([1.0, 1.0]), np.array([0.0, 1.0])))
        0.75

    Reference:
        RouteLLM (arXiv 2406.18665), equation 5, exact in place of its ten-point mean.
    """
    return float(np.trapezoid(curve.pgr, curve.strong_share))


def apgr_binned(win_prob: Column, quality_strong: Column, quality_weak: Column, *, num_thresholds: int = 10) -> float:
    """APGR as RouteLLM's evaluation computes it, for comparison with published figures; prefer :func:`apgr`.

    Thresholds are the ``num_thresholds + 1`` edges of ``pandas.qcut(win_prob, num_thresholds)``: prompts with
    ``win_prob >= edge`` go to the strong model, at the last edge ``win_prob > edge``. With quality integrated over the
    strong share by trapezoids, it is ``(area - area of weak) / (area of strong - area of weak)`` on those shares.

    Deviation: pandas refuses equal edges; here they are points of equal share, which add no area.

    Args:
        win_prob: ``[prompts]``, any finite score.
        quality_strong: ``[prompts]``.
        quality_weak: ``[prompts]``.
        num_thresholds: quantile bins, at least 1.

    Raises:
        InputError: as :func:`cost_quality_curve`, or ``num_thresholds`` below 1.

    Reference:
        ``routellm/evals/benchmarks.py`` and ``evaluate.py`` of github.com/lm-sys/RouteLLM; ``qcut`` of pandas 3.
    """
    if num_thresholds < 1:
        raise InputError(f"num_thresholds must be at least 1; got {num_thresholds}")
    win_prob, quality_strong, quality_weak = check_columns(
        {"win_prob": win_prob, "quality_strong": quality_strong, "quality_weak": quality_weak}
    )
    gain = quality_gain(quality_strong, quality_weak)
    edges = np.percentile(win_prob, 100.0 * _quantile_fractions(num_thresholds))
    selected = [win_prob >= edge for edge in edges[:-1]] + [win_prob > edges[-1]]
    points = sorted((float(chosen.mean()), float(np.where(chosen, gain, 0.0).mean())) for chosen in selected)
    share, gained = np.array(points).T
    # Quality is weak + gained, so the weak model's area drops out.
    return float(np.trapezoid(gained, share) / (gain.mean() * (share[-1] - share[0])))


def binned_area(curve: Curve, num_prompts: int, num_thresholds: int = 10) -> float:
    """:func:`apgr_binned` of a resample, from its curve; edges at a prompt's score select it, whatever their rounding.

    Args:
        curve: see :meth:`Ranking.curve`.
        num_prompts: that were drawn.
        num_thresholds: quantile bins.
    """
    # An edge between two scores selects what lies above it, an edge at a score that score and its equals too: so each
    # selects the prompts from a whole place on, counted from the lowest. One half keeps clear of rounding.
    place = np.ceil((num_prompts - 1) * _quantile_fractions(num_thresholds)[1:-1])
    above = num_prompts - 1 - place[::-1] + 0.5
    inner = np.searchsorted(curve.strong_share * num_prompts, above)
    point = np.concatenate([[0], inner, [len(curve.pgr) - 1]])
    return float(np.trapezoid(curve.pgr[point], curve.strong_share[point]))


def _quantile_fractions(num_bins: int) -> Float[np.ndarray, "edges"]:
    """Fractions of the prompts below each edge of ``pandas.qcut``, from 0 to 1."""
    fraction = np.linspace(0.0, 1.0, num_bins + 1)
    # pandas rounds fractions up that binary cannot hold; it decides on which side an edge at a prompt's score falls.
    inexact = num_bins * fraction != np.arange(num_bins + 1)
    return np.where(inexact, np.nextafter(fraction, 1.0), fraction)


def cpt(curve: Curve, target: float) -> float | None:
    """Call-performance threshold: the smallest strong share at which PGR reaches ``target``.

    Between the points of the curve PGR is linear (a random split of tied prompts, or of neighbours).

    Args:
        curve: of one router.
        target: PGR to reach, 0.5 for CPT(50 %).

    Returns:
        Strong share in [0, 1], or None where the curve never reaches ``target`` (only possible above 1).

    Raises:
        InputError: ``target`` is not finite.

    Example:
        >>> cpt(cost_quality_curve(np.array([0.9, 0.1]), np.array([1.0, 1.0]), np.array([0.0, 1.0])), 0.5)
        0.25

    Reference:
        RouteLLM (arXiv 2406.18665), section 3.2.
    """
    if not math.isfinite(target):
        raise InputError(f"a PGR target must be finite, such as 0.5; got {target}")
    reached = np.flatnonzero(curve.pgr >= target)
    if reached.size == 0:
        return None
    after = int(reached[0])
    if after == 0:
        return 0.0
    share, pgr = curve.strong_share[after - 1 : after + 1], curve.pgr[after - 1 : after + 1]
    return float(share[0] + (target - pgr[0]) / (pgr[1] - pgr[0]) * (share[1] - share[0]))


def cost_saving(router: Curve | float, target: float) -> float | None:
    """Cost saving: strong calls of the random router over this one's for the same PGR: ``target / CPT(target)``.

    The random router's expected CPT(x) is x. The cost of the weak model is taken as nothing, as in the paper.

    Args:
        router: the curve of a router, or its CPT at ``target`` where that is known already.
        target: PGR to reach, above 0.

    Returns:
        A factor above 1 where the router saves; ``inf`` where it needs no strong call, None where it never gets there.

    Raises:
        InputError: ``target`` is not above 0.

    Example:
        >>> cost_saving(0.134, 0.5).__round__(2)
        3.73

    Reference:
        RouteLLM (arXiv 2406.18665), section 5.3.
    """
    if not (math.isfinite(target) and target > 0.0):
        raise InputError(f"a cost saving needs a PGR target above 0, such as 0.5; got {target}")
    share = cpt(router, target) if isinstance(router, Curve) else router
    if share is None:
        return None
    return target / share if share > 0.0 else math.inf


def aiq(curve: Curve) -> float:
    """Average improvement in quality: mean height of the curve's non-decreasing convex hull.

    ``AIQ = 1 / (1 - 0) * integral from 0 to 1 of hull(share) d share``. The hull is the least concave, non-decreasing
    function above the points (share, quality): what can be reached at a budget by mixing two thresholds at random, or
    by spending less than the budget. RouterBench integrates over cost; with one price for each model cost is an affine
    function of the share, and the average is the same.

    Returns:
        Quality, in the unit of the qualities; at least the better model's and the weak model's average.

    Example:
        >>> aiq(cost_quality_curve(np.array([0.9, 0.1]), np.array([1.0, 0.0]), np.array([0.0, 0.5])))
        0.625

    Reference:
        RouterBench (arXiv 2403.12031), section 3.
    """
    top = int(np.argmax(curve.quality))
    share = np.append(curve.strong_share[: top + 1], 1.0)
    quality = np.append(curve.quality[: top + 1], curve.quality[top])
    hull: list[int] = []
    for point in range(len(share)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            # Drop b where it lies on or below the chord from a to the new point.
            rise_to_b = (quality[b] - quality[a]) * (share[point] - share[a])
            rise_to_point = (quality[point] - quality[a]) * (share[b] - share[a])
            if rise_to_b > rise_to_point:
                break
            hull.pop()
        hull.append(point)
    return float(np.trapezoid(quality[hull], share[hull]))
