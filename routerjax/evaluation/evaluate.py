"""Figures of routers on one benchmark, each with its interval."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float64

from routerjax import metrics
from routerjax.data import Benchmark, model_index
from routerjax.errors import InputError
from routerjax.evaluation.controls import CONTROLS, is_chance
from routerjax.evaluation.slices import Slice, evaluate_slices
from routerjax.metrics import Figure
from routerjax.metrics.columns import quality_gain

TARGETS = (0.5, 0.8)
BAND_SHARES = np.linspace(0.0, 1.0, 51)


@dataclass(frozen=True)
class Band:
    """95 % bootstrap intervals of PGR along a curve, float64 ``[shares]``: how much of the gap, not how wide it is.

    Attributes:
        strong_share: rising from 0 to 1.
        low: of the interval of PGR there.
        high: of the interval of PGR there.
    """

    strong_share: Float64[np.ndarray, "shares"]
    low: Float64[np.ndarray, "shares"]
    high: Float64[np.ndarray, "shares"]


@dataclass(frozen=True)
class ScoredPair:
    """The models that a router's win probabilities compare.

    Attributes:
        strong, weak: as scored: the benchmark's pair where the router knows both names, else the router's own.
        own_strong, own_weak: the router's own pair, for which it was calibrated if it was.
    """

    strong: str
    weak: str
    own_strong: str
    own_weak: str


@dataclass(frozen=True)
class RouterResult:
    """Figures of one router on one benchmark.

    Attributes:
        curve: the exact cost-quality curve.
        band: intervals of its PGR.
        apgr: area under PGR over the strong share.
        apgr_binned: the same as RouteLLM computes it, for comparison with published figures.
        cpt: by target PGR, the strong share that reaches it.
        cost_saving: by target PGR, the random router's strong share over this one's.
        aiq: RouterBench's average improvement in quality.
        of_oracle: share of the way from random (0) to the oracle (1) that its APGR comes; None without an oracle, or
            where every prompt gains the same.
        log_loss: in nats, of the win probabilities against :func:`preference_label`.
        brier: mean squared error of the same.
        calibration_error: expected calibration error of the same.
        reliability: mean probability and mean label by size of the probability.
    """

    curve: metrics.Curve
    band: Band
    apgr: Figure
    apgr_binned: Figure
    cpt: Mapping[float, Figure]
    cost_saving: Mapping[float, Figure]
    aiq: float
    of_oracle: Figure | None
    log_loss: Figure
    brier: Figure
    calibration_error: Figure
    reliability: metrics.Reliability


@dataclass(frozen=True)
class BenchmarkResult:
    """Figures of all routers on one benchmark.

    Attributes:
        benchmark, strong, weak: names.
        num_prompts: of the benchmark.
        quality_strong, quality_weak: mean qualities.
        gap_not_positive: share of the resamples in which the strong model is not better than the weak one; APGR, CPT
            and what follows from them mean little there.
        routers: by name, the controls among them.
        difference: by pair of routers, as ordered in ``routers``, APGR of the first minus that of the second, with its
            paired interval; :meth:`minus` takes them in either order.
        slices: where the routers err, without the controls.
        num_samples, seed: of the bootstrap.
        pairs: by router, the models that its win probabilities compare, where known.
    """

    benchmark: str
    strong: str
    weak: str
    num_prompts: int
    quality_strong: float
    quality_weak: float
    gap_not_positive: float
    routers: Mapping[str, RouterResult]
    difference: Mapping[tuple[str, str], Figure]
    slices: tuple[Slice, ...]
    num_samples: int
    seed: int
    pairs: Mapping[str, ScoredPair] = field(default_factory=dict)

    def minus(self, one: str, other: str) -> Figure:
        """Return APGR of one router minus that of another, with its paired interval."""
        difference = self.difference.get((one, other))
        return -self.difference[other, one] if difference is None else difference


def preference_label(benchmark: Benchmark, *, strong: str, weak: str) -> Float64[np.ndarray, "prompts"]:
    """P(the strong answer is preferred) that win probabilities are compared with, a tie counting half.

    Qualities in [0, 1] are chances of a good answer: ``(1 + strong - weak) / 2``. Grades on another scale are compared:
    1, 0.5 or 0.
    """
    gain = benchmark.quality[strong] - benchmark.quality[weak]
    qualities = np.stack([benchmark.quality[strong], benchmark.quality[weak]])
    return (1 + (gain if is_chance(qualities) else np.sign(gain))) / 2


def find_pair(benchmark: Benchmark, strong: str | None, weak: str | None) -> tuple[str, str]:
    """Return the strong and the weak model to evaluate on: those that are named, else the benchmark's own.

    Raises:
        InputError: neither named nor usual, unknown to the benchmark, or without a gap in quality to recover.
    """
    strong, weak = strong or benchmark.strong, weak or benchmark.weak
    if strong is None or weak is None:
        raise InputError(
            f"the benchmark {benchmark.name} names no strong and no weak model: give both (--strong, --weak); "
            f"its models are {', '.join(benchmark.quality)}"
        )
    for model in (strong, weak):
        model_index(tuple(benchmark.quality), model)
    quality_gain(benchmark.quality[strong], benchmark.quality[weak])
    return strong, weak


def evaluate(
    win_prob: Mapping[str, Float[np.ndarray, "prompts"]],
    benchmark: Benchmark,
    *,
    strong: str | None = None,
    weak: str | None = None,
    resamples: metrics.Resamples = metrics.RESAMPLES,
    pairs: Mapping[str, ScoredPair] | None = None,
    progress: bool = False,
) -> BenchmarkResult:
    """Compute every router's figures, with 95 % bootstrap intervals over the prompts, the same resamples for all.

    Args:
        win_prob: by router, in the order of the benchmark's prompts, in [0, 1]. ``oracle``, where it is among them, is
            what ``of_oracle`` is measured against.
        benchmark: prompts and qualities.
        strong: default the benchmark's own.
        weak: default the benchmark's own.
        resamples: of the prompts.
        pairs: by router, the models that its win probabilities compare; for the report alone.
        progress: show progress bars, where it takes more than two seconds.

    Raises:
        InputError: no pair of models, another number of prompts, or values outside [0, 1].
    """
    strong, weak = find_pair(benchmark, strong, weak)
    for name, values in win_prob.items():
        if np.shape(values) != (len(benchmark),):
            raise InputError(
                f"{name}: expected {len(benchmark)} win probabilities for {benchmark.name}, got {np.shape(values)}"
            )
    quality_strong, quality_weak = benchmark.quality[strong], benchmark.quality[weak]
    label = preference_label(benchmark, strong=strong, weak=weak)
    samples = metrics.bootstrap(
        win_prob,
        quality_strong,
        quality_weak,
        resamples=resamples,
        targets=TARGETS,
        shares=BAND_SHARES.tolist(),
        progress=progress,
    )
    columns = [metrics.calibration_columns(values, label) for values in win_prob.values()]
    means = metrics.bootstrap_means(
        np.concatenate([[quality_strong - quality_weak], *columns]), resamples, progress=progress
    )
    calibration = np.split(means[:, 1:], np.cumsum([len(column) for column in columns])[:-1], axis=1)
    curves = {
        name: metrics.cost_quality_curve(values, quality_strong, quality_weak) for name, values in win_prob.items()
    }
    exact = {name: metrics.apgr(curve) for name, curve in curves.items()}
    routers = {}
    for (name, values), mean in zip(win_prob.items(), calibration, strict=True):
        curve, drawn = curves[name], samples[name]
        routers[name] = RouterResult(
            curve=curve,
            band=_band(drawn.pgr),
            apgr=Figure.of(exact[name], drawn.apgr),
            apgr_binned=Figure.of(metrics.apgr_binned(values, quality_strong, quality_weak), drawn.apgr_binned),
            cpt={target: Figure.of(metrics.cpt(curve, target), drawn.cpt[target]) for target in TARGETS},
            cost_saving={target: _saving(curve, drawn.cpt[target], target) for target in TARGETS},
            aiq=metrics.aiq(curve),
            of_oracle=_of_oracle(exact, samples, name),
            log_loss=Figure.of(metrics.log_loss(values, label), mean[:, 0]),
            brier=Figure.of(metrics.brier(values, label), mean[:, 1]),
            calibration_error=Figure.of(
                metrics.expected_calibration_error(values, label), np.abs(mean[:, 2:]).sum(axis=1)
            ),
            reliability=metrics.reliability(values, label),
        )
    difference = {
        (one, other): Figure.of(exact[one] - exact[other], samples[one].apgr - samples[other].apgr)
        for one, other in itertools.combinations(win_prob, 2)
    }
    slices = evaluate_slices(
        {name: values for name, values in win_prob.items() if name not in CONTROLS},
        benchmark,
        strong=strong,
        weak=weak,
        resamples=resamples,
        progress=progress,
    )
    return BenchmarkResult(
        benchmark=benchmark.name,
        strong=strong,
        weak=weak,
        num_prompts=len(benchmark),
        quality_strong=float(quality_strong.mean()),
        quality_weak=float(quality_weak.mean()),
        gap_not_positive=float((means[:, 0] <= 0).mean()),
        routers=routers,
        difference=difference,
        slices=slices,
        num_samples=resamples.num_samples,
        seed=resamples.seed,
        pairs=pairs or {},
    )


def _of_oracle(apgr: Mapping[str, float], samples: Mapping[str, metrics.BootstrapSamples], name: str) -> Figure | None:
    if "oracle" not in apgr or apgr["oracle"] == 0.5:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (samples[name].apgr - 0.5) / (samples["oracle"].apgr - 0.5)
    # Where all drawn prompts gain the same there is no way to come.
    drawn = np.where(np.isfinite(drawn), drawn, np.nan)
    return Figure.of((apgr[name] - 0.5) / (apgr["oracle"] - 0.5), drawn)


def _band(samples: Float[np.ndarray, "samples shares"]) -> Band:
    low, high = np.array([metrics.percentile_interval(column) for column in samples.T]).T
    return Band(BAND_SHARES, low, high)


def _saving(curve: metrics.Curve, cpt_samples: Float[np.ndarray, "samples"], target: float) -> Figure:
    with np.errstate(divide="ignore"):
        return Figure.of(metrics.cost_saving(curve, target), target / cpt_samples)
