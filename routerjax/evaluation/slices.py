"""Figures of routers by domain, and by the length of the prompt: where they err."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from routerjax.data import Benchmark
from routerjax.metrics import RESAMPLES, Figure, Resamples

# The share of all prompts that every router sends to the strong model here.
STRONG_SHARE = 0.5


@dataclass(frozen=True)
class SliceFigures:
    """Figures of one router on the prompts of one slice, which sends half of the benchmark to the strong model.

    Attributes:
        strong_share: of the slice's prompts.
        quality: mean, of the routed answers.
        over_random: quality minus that of as many strong calls on random prompts of the slice.
        regret: quality of as many strong calls on the best prompts of the slice, minus the router's.
    """

    strong_share: float
    quality: Figure
    over_random: Figure
    regret: Figure


@dataclass(frozen=True)
class Slice:
    """Prompts of one kind.

    Attributes:
        kind: ``domain`` or ``length``.
        name: the domain, or the range of lengths.
        num_prompts: in the slice.
        quality_strong, quality_weak: mean qualities.
        routers: by name.
    """

    kind: str
    name: str
    num_prompts: int
    quality_strong: float
    quality_weak: float
    routers: Mapping[str, SliceFigures]


class _Prompts(NamedTuple):
    """Prompts sorted by slice, then from the largest gain to the smallest; ``starts`` are those of the slices."""

    order: Int[np.ndarray, "prompts"]
    slice_id: Int[np.ndarray, "prompts"]
    starts: Int[np.ndarray, "slices"]
    weak: Float64[np.ndarray, "prompts"]
    gain: Float64[np.ndarray, "prompts"]


class _Statistics(NamedTuple):
    """Figures ``[routers, slices]``, or of many resamples ``[samples, routers, slices]``."""

    strong_share: Float64[np.ndarray, "*shape"]
    quality: Float64[np.ndarray, "*shape"]
    over_random: Float64[np.ndarray, "*shape"]
    regret: Float64[np.ndarray, "*shape"]


def evaluate_slices(
    win_prob: Mapping[str, Float[np.ndarray, "prompts"]],
    benchmark: Benchmark,
    *,
    strong: str,
    weak: str,
    resamples: Resamples = RESAMPLES,
    progress: bool = False,
) -> tuple[Slice, ...]:
    """Figures of every router on every slice, with intervals over the resamples of :func:`routerjax.metrics.bootstrap`.

    Each router sends the half of the benchmark with its highest win probabilities to the strong model, equal ones at
    the border in part; a resample moves the prompts, not the border.

    Args:
        win_prob: by router, in the order of the benchmark's prompts.
        benchmark: prompts and qualities.
        strong: the expensive model.
        weak: the cheap one.
        resamples: of the prompts.
        progress: show a progress bar, if it takes more than two seconds.

    Returns:
        Slices by domain, where the benchmark has domains, and by quartile of the prompts' characters.
    """
    if not win_prob:
        return ()
    gain = benchmark.quality[strong] - benchmark.quality[weak]
    sent = np.stack([strong_fraction(column, STRONG_SHARE) for column in win_prob.values()])
    slices = []
    for kind, names, slice_id in _partitions(benchmark):
        order = np.lexsort((-gain, slice_id))
        sorted_id = slice_id[order]
        starts = np.searchsorted(sorted_id, np.arange(len(names)))
        prompts = _Prompts(order, sorted_id, starts, benchmark.quality[weak][order], gain[order])
        exact = _statistics(np.ones(len(order)), prompts, sent[:, order])
        drawn = [
            _statistics(counts, prompts, sent[:, order]) for counts in resamples.counts(len(order), progress=progress)
        ]
        samples = _Statistics(*map(np.stack, zip(*drawn, strict=True)))
        for column, name in enumerate(names):
            chosen = slice_id == column
            routers = {}
            for row, router in enumerate(win_prob):
                figures = {
                    statistic: Figure.of(
                        float(getattr(exact, statistic)[row, column]), getattr(samples, statistic)[:, row, column]
                    )
                    for statistic in ("quality", "over_random", "regret")
                }
                routers[router] = SliceFigures(strong_share=float(exact.strong_share[row, column]), **figures)
            slices.append(
                Slice(
                    kind=kind,
                    name=name,
                    num_prompts=int(chosen.sum()),
                    quality_strong=float(benchmark.quality[strong][chosen].mean()),
                    quality_weak=float(benchmark.quality[weak][chosen].mean()),
                    routers=routers,
                )
            )
    return tuple(slices)


def strong_fraction(win_prob: Float[np.ndarray, "prompts"], strong_share: float) -> Float64[np.ndarray, "prompts"]:
    """Share of each prompt that goes to the strong model: 1 above the border, 0 below it, a part of equal ones.

    The mean is ``strong_share``, in (0, 1]; the mean quality is that of the cost-quality curve there.

    Example:
        >>> strong_fraction(np.array([0.1, 0.4, 0.4, 0.9]), 0.5).tolist()
        [0.0, 0.5, 0.5, 1.0]
    """
    wanted = strong_share * len(win_prob)
    border = np.sort(win_prob)[::-1][int(np.ceil(wanted)) - 1]
    above, level = win_prob > border, win_prob == border
    return above + level * ((wanted - above.sum()) / level.sum())


def _partitions(benchmark: Benchmark) -> Iterator[tuple[str, list[str], Int[np.ndarray, "prompts"]]]:
    """Kind, names of the slices, and the slice of each prompt."""
    if benchmark.domain is not None:
        names, slice_id = np.unique(np.asarray(benchmark.domain, object), return_inverse=True)
        yield "domain", [str(name) for name in names], slice_id
    length = np.asarray([len(prompt) for prompt in benchmark.prompts])
    # Lengths that many prompts share leave fewer than four.
    ends = np.unique(np.quantile(length, [0.25, 0.5, 0.75, 1.0], method="inverted_cdf").astype(int))
    starts = [int(length.min()), *(int(end) + 1 for end in ends[:-1])]
    names = [f"{start:,} to {end:,} characters" for start, end in zip(starts, ends.tolist(), strict=True)]
    yield "length", names, np.searchsorted(ends, length)


def _statistics(
    counts: Float64[np.ndarray, "prompts"], prompts: _Prompts, sent: Float64[np.ndarray, "routers prompts"]
) -> _Statistics:
    """Figures with each prompt taken ``counts`` times; NaN where a slice is empty."""
    count = counts[prompts.order]

    def total(column: Float64[np.ndarray, "*routers prompts"]) -> Float64[np.ndarray, "*routers slices"]:
        return np.add.reduceat(column, prompts.starts, axis=-1)

    size, weak, gain = total(count), total(count * prompts.weak), total(count * prompts.gain)
    # How many prompts of the same slice have a larger gain.
    before = np.cumsum(count) - count - (np.cumsum(size) - size)[prompts.slice_id]
    calls, gained = total(count * sent), total(count * sent * prompts.gain)
    best = total(np.clip(calls[:, prompts.slice_id] - before, 0.0, count) * prompts.gain)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = calls / size
        return _Statistics(share, (weak + gained) / size, (gained - share * gain) / size, (best - gained) / size)
