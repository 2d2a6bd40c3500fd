"""Figures of routers on one benchmark, each with its interval."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from routerjax import metrics
from routerjax.data import Benchmark, model_index
from routerjax.errors import InputError
from routerjax.evaluation.figures import CONTROLS, Figure, figure
from routerjax.evaluation.slices import Slice, evaluate_slices
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
class RouterResult:
    """One router on one benchmark.

    Attributes:
        curve: the exact cost-quality curve.
        band: how far its PGR can be trusted.
        apgr: area under PGR over the strong share.
        apgr_binned: the same as RouteLLM computes it, for comparison with published figures.
        cpt: by target PGR, the strong share that reaches it.
        cost_saving: by target PGR, the random router's strong share over this one's.
        aiq: RouterBench's average improvement in quality.
        of_oracle: how much of the way from random (0) to the oracle (1) its APGR comes.
        log_loss: in nats, of the win probabilities against :func:`preference_label`.
        brier: mean squared error of the same.
        calibration_error: expected calibration error of the same.
        reliability: mean probability and mean label by size of the probability.
    """

    curve: metrics.Curve
    band: Band
    apgr: Figure
    apgr_binned: float
    cpt: Mapping[float, Figure]
    cost_saving: Mapping[float, Figure]
    aiq: float
    of_oracle: float | None
    log_loss: float
    brier: float
    calibration_error: float
    reliability: metrics.Reliability


@dataclass(frozen=True)
class BenchmarkResult:
    """All routers on one benchmark.

    Attributes:
        benchmark, strong, weak: names.
        num_prompts: of the benchmark.
        quality_strong, quality_weak: mean qualities.
        routers: by name, the controls among them.
        difference: by pair of routers, APGR of the first minus that of the second, with its paired interval.
        slices: where the routers err, without the controls.
        num_samples, seed: of the bootstrap.
    """

    benchmark: str
    strong: str
    weak: str
    num_prompts: int
    quality_strong: float
    quality_weak: float
    routers: Mapping[str, RouterResult]
    difference: Mapping[tuple[str, str], Figure]
    slices: tuple[Slice, ...]
    num_samples: int
    seed: int


def preference_label(benchmark: Benchmark, *, strong: str, weak: str) -> Float64[np.ndarray, "prompts"]:
    """P(the strong answer is preferred) that win probabilities are compared with, a tie counting half.

    Qualities in [0, 1] are chances of a good answer: ``(1 + strong - weak) / 2``. Grades on another scale are compared:
    1, 0.5 or 0.
    """
    gain = benchmark.quality[strong] - benchmark.quality[weak]
    qualities = np.stack([benchmark.quality[strong], benchmark.quality[weak]])
    return (1 + (gain if is_chance(qualities) else np.sign(gain))) / 2


def is_chance(quality: Float64[np.ndarray, "*shape"]) -> bool:
    """Whether qualities are chances of a good answer, as opposed to grades."""
    return bool(quality.min() >= 0 and quality.max() <= 1)


def find_pair(benchmark: Benchmark, strong: str | None, weak: str | None) -> tuple[str, str]:
    """The strong and the weak model to evaluate on: those that are named, else the benchmark's own.

    Raises:
        InputError: neither named nor usual, unknown to the benchmark, or without a gap in quality to recover.
    """
    strong, weak = strong or benchmark.strong, weak or benchmark.weak
    if strong is None or weak is None:
        raise InputError(
            f"benchmark {benchmark.name} has no usual pair of models: name the strong and the weak one "
            f"(--strong, --weak); it has {', '.join(benchmark.quality)}"
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
    num_samples: int = 1000,
    seed: int = 0,
) -> BenchmarkResult:
    """Figures of every router, with 95 % bootstrap intervals over the prompts, the same resamples for all.

    Args:
        win_prob: by router, in the order of the benchmark's prompts, in [0, 1]. ``oracle``, where it is among them, is
            what ``of_oracle`` is measured against.
        benchmark: prompts and qualities.
        strong: default the benchmark's own.
        weak: default the benchmark's own.
        num_samples: resamples.
        seed: of the resamples.

    Raises:
        InputError: no pair of models, another number of prompts, or win probabilities that are none.
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
        num_samples=num_samples,
        seed=seed,
        targets=TARGETS,
        shares=BAND_SHARES.tolist(),
    )
    curves = {
        name: metrics.cost_quality_curve(values, quality_strong, quality_weak) for name, values in win_prob.items()
    }
    exact = {name: metrics.apgr(curve) for name, curve in curves.items()}
    oracle = exact.get("oracle")
    routers = {}
    for name, values in win_prob.items():
        curve, drawn = curves[name], samples[name]
        of_oracle = None if oracle is None or oracle <= 0.5 else (exact[name] - 0.5) / (oracle - 0.5)
        routers[name] = RouterResult(
            curve=curve,
            band=_band(drawn.pgr),
            apgr=figure(exact[name], drawn.apgr),
            apgr_binned=metrics.apgr_binned(values, quality_strong, quality_weak),
            cpt={target: figure(metrics.cpt(curve, target), drawn.cpt[target]) for target in TARGETS},
            cost_saving={target: _saving(curve, drawn.cpt[target], target) for target in TARGETS},
            aiq=metrics.aiq(curve),
            of_oracle=of_oracle,
            log_loss=metrics.log_loss(values, label),
            brier=metrics.brier(values, label),
            calibration_error=metrics.expected_calibration_error(values, label),
            reliability=metrics.reliability(values, label),
        )
    difference = {
        (one, other): figure(exact[one] - exact[other], samples[one].apgr - samples[other].apgr)
        for one, other in itertools.permutations(win_prob, 2)
    }
    slices = evaluate_slices(
        {name: values for name, values in win_prob.items() if name not in CONTROLS},
        benchmark,
        strong=strong,
        weak=weak,
        num_samples=num_samples,
        seed=seed,
    )
    return BenchmarkResult(
        benchmark=benchmark.name,
        strong=strong,
        weak=weak,
        num_prompts=len(benchmark),
        quality_strong=float(quality_strong.mean()),
        quality_weak=float(quality_weak.mean()),
        routers=routers,
        difference=difference,
        slices=slices,
        num_samples=num_samples,
        seed=seed,
    )


def _band(samples: Float[np.ndarray, "samples shares"]) -> Band:
    low, high = np.array([metrics.percentile_interval(column) for column in samples.T]).T
    return Band(BAND_SHARES, low, high)


def _saving(curve: metrics.Curve, cpt_samples: Float[np.ndarray, "samples"], target: float) -> Figure:
    with np.errstate(divide="ignore"):
        return figure(metrics.cost_saving(curve, target), target / cpt_samples)
