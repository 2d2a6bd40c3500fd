"""Figures of routers by domain, and by the length of the prompt: where they err."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from routerjax.data import Benchmark
from routerjax.metrics import Figure, over_resamples

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
    """Prompts sorted by slice, then from the largest gain to the smallest."""

    order: Int[Array, "prompts"]
    slice_id: Int[Array, "prompts"]
    weak: Float[Array, "prompts"]
    gain: Float[Array, "prompts"]


class _Statistics(NamedTuple):
    strong_share: Float[Array, "routers slices"]
    quality: Float[Array, "routers slices"]
    over_random: Float[Array, "routers slices"]
    regret: Float[Array, "routers slices"]


def evaluate_slices(
    win_prob: Mapping[str, Float[np.ndarray, "prompts"]],
    benchmark: Benchmark,
    *,
    strong: str,
    weak: str,
    num_samples: int,
    seed: int,
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
        num_samples: resamples, 1 to 100,000.
        seed: of the resamples, 0 to 2**32 - 1.
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
        prompts = _Prompts(
            order=jnp.asarray(order, jnp.int32),
            slice_id=jnp.asarray(slice_id[order], jnp.int32),
            weak=jnp.asarray(benchmark.quality[weak][order], jnp.float32),
            gain=jnp.asarray(gain[order], jnp.float32),
        )
        arguments = (prompts, jnp.asarray(sent[:, order], jnp.float32), len(names))
        exact = _statistics(jnp.ones((1, len(order))), *arguments)
        exact = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), exact)
        samples = over_resamples(
            lambda counts, arguments=arguments: _statistics(counts, *arguments),
            num_prompts=len(order),
            num_samples=num_samples,
            seed=seed,
            elements=sent.size,
            progress=progress,
        )
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


@partial(jax.jit, static_argnums=3)
@partial(jax.vmap, in_axes=(0, None, None, None))
def _statistics(
    counts: Float[Array, "prompts"], prompts: _Prompts, sent: Float[Array, "routers prompts"], num_slices: int
) -> _Statistics:
    """Figures with each prompt taken ``counts`` times; NaN where a slice is empty."""
    count = counts[prompts.order]

    def total(column: Float[Array, "prompts"]) -> Float[Array, "slices"]:
        return jax.ops.segment_sum(column, prompts.slice_id, num_slices, indices_are_sorted=True)

    size, weak, gain = total(count), total(count * prompts.weak), total(count * prompts.gain)
    # How many prompts of the same slice have a larger gain.
    before = jnp.cumsum(count) - count - (jnp.cumsum(size) - size)[prompts.slice_id]

    def of_router(sent: Float[Array, "prompts"]) -> _Statistics:
        calls, gained = total(count * sent), total(count * sent * prompts.gain)
        best_calls = jnp.clip(calls[prompts.slice_id] - before, 0.0, count)
        best = total(best_calls * prompts.gain)
        share = calls / size
        return _Statistics(share, (weak + gained) / size, (gained - share * gain) / size, (best - gained) / size)

    return jax.vmap(of_router)(sent)
