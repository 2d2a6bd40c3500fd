"""Resamples of the prompts: how often each is drawn, statistics over many of them, and their intervals.

A resample is a vector of counts, the same for every router and statistic, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Float64, Int, Key

from routerjax.errors import InputError

# Elements of one intermediate array; a dozen such arrays are alive at a time.
CHUNK_ELEMENTS = 2**20
# Resamples computed at once; those beyond the last one that is wanted are thrown away.
CHUNK_SAMPLES = 64
# A percentile of a million resamples is no better than one of a hundred thousand, and their statistics fill the memory.
MOST_SAMPLES = 100_000
# Without 64-bit types JAX keeps 32 bits of a seed: a larger one would silently be another.
SEEDS = 2**32

StatisticsT = TypeVar("StatisticsT")


class Interval(NamedTuple):
    """A range of a statistic over resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A statistic with its 95 % bootstrap interval over prompts.

    Attributes:
        value: on all prompts; None where it is not reached (CPT and what follows from it).
        low: of the interval.
        high: of the interval; ``inf`` where more than 2.5 % of the resamples do not reach it.
    """

    value: float | None
    low: float
    high: float

    @classmethod
    def of(cls, value: float | None, samples: Float[np.ndarray, "samples"]) -> Figure:
        """Add the :func:`percentile_interval` of the resamples to the statistic on all prompts."""
        return cls(value, *percentile_interval(samples))

    def __neg__(self) -> Figure:
        return Figure(None if self.value is None else -self.value, -self.high, -self.low)


def check_resamples(num_samples: int, seed: int) -> None:
    """Refuse a number of resamples or a seed that cannot be used.

    Raises:
        InputError: ``num_samples`` outside 1 to 100,000, or ``seed`` outside 0 to 2**32 - 1.
    """
    if not 1 <= num_samples <= MOST_SAMPLES:
        raise InputError(
            f"num_samples (--samples), the number of bootstrap resamples, must be in 1 to {MOST_SAMPLES:,}; 1,000 is "
            f"usual; got {num_samples}"
        )
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed must be in 0 to {SEEDS - 1}, got {seed}")


def prompt_counts(key: Key[Array, ""], num_prompts: int) -> Float[Array, "prompts"]:
    """Draw how often each prompt is in a resample: float32 integers that sum to ``num_prompts``."""
    drawn = jax.random.randint(key, (num_prompts,), 0, num_prompts)
    return jnp.zeros(num_prompts, jnp.float32).at[drawn].add(1.0)


def over_resamples(
    statistics: Callable[[Float[Array, "samples prompts"]], StatisticsT],
    *,
    num_prompts: int,
    num_samples: int,
    seed: int,
    elements: int,
    progress: bool = False,
) -> StatisticsT:
    """Evaluate ``statistics`` of the prompts' counts on each resample: leaves float64 ``[samples, ...]``.

    Resample i depends on ``seed``, i and the number of prompts alone, so separate calls are paired. Resamples are taken
    in chunks of one size whatever their number, so that ``statistics`` is compiled once.

    Args:
        statistics: of counts ``[samples, prompts]``, see :func:`prompt_counts`, to leaves ``[samples, ...]``.
        num_prompts: in the benchmark.
        num_samples: resamples, 1 to 100,000.
        seed: of the resamples, 0 to 2**32 - 1.
        elements: numbers that ``statistics`` holds for one resample; bounds a chunk.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: ``num_samples`` or ``seed`` out of range.
    """
    check_resamples(num_samples, seed)
    key = jax.random.key(seed)
    chunk = min(CHUNK_SAMPLES, max(1, CHUNK_ELEMENTS // elements))
    parts = []
    with tqdm.tqdm(total=num_samples, unit="resample", disable=not progress, delay=2) as bar:
        for start in range(0, num_samples, chunk):
            counts = _resample(key, jnp.arange(start, start + chunk), num_prompts)
            parts.append(jax.tree.map(np.asarray, statistics(counts)))
            bar.update(min(chunk, num_samples - start))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, dtype=np.float64)[:num_samples], *parts)


def bootstrap_means(
    columns: Float[np.ndarray, "columns prompts"], *, num_samples: int, seed: int, progress: bool = False
) -> Float64[np.ndarray, "samples columns"]:
    """Mean of each column over the prompts of each resample, in float32.

    The resamples are those of :func:`routerjax.metrics.bootstrap` with the same seed.

    Args:
        columns: one value a prompt.
        num_samples: resamples, 1 to 100,000.
        seed: of the resamples, 0 to 2**32 - 1.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: ``num_samples`` or ``seed`` out of range.

    Example:
        >>> bootstrap_means(np.array([[2.0, 2.0, 2.0]]), num_samples=2, seed=0).tolist()
        [[2.0], [2.0]]
    """
    by_prompt = jnp.asarray(columns.T, jnp.float32)
    return over_resamples(
        lambda counts: _means(counts, by_prompt),
        num_prompts=columns.shape[1],
        num_samples=num_samples,
        seed=seed,
        elements=columns.shape[1],
        progress=progress,
    )


def percentile_interval(samples: Float[np.ndarray, "samples"], *, level: float = 0.95) -> Interval:
    """Percentile interval of a statistic's resamples: its ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles.

    Quantiles are taken at samples, outward, so that ``inf`` (a CPT not reached) stands for itself: ``high = inf`` says
    that more than ``(1 - level) / 2`` of the resamples do not reach the target. NaN (undefined) samples are left out.

    Args:
        samples: of one statistic, or of a paired difference.
        level: in (0, 1).

    Returns:
        The interval; NaN twice where no sample is defined.

    Raises:
        InputError: ``level`` outside (0, 1).

    Example:
        >>> percentile_interval(np.arange(101.0), level=0.9)
        Interval(low=5.0, high=95.0)
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    samples = np.asarray(samples, np.float64)
    samples = np.sort(samples[~np.isnan(samples)])
    if samples.size == 0:
        return Interval(math.nan, math.nan)
    # The small number absorbs the rounding of level: 0.05 * 100 is to be place 5, not 4.999.
    left_out = math.floor((1.0 - level) / 2.0 * (samples.size - 1) + 1e-9)
    return Interval(float(samples[left_out]), float(samples[-1 - left_out]))


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(None, 0, None))
def _resample(key: Key[Array, ""], sample: Int[Array, ""], num_prompts: int) -> Float[Array, "prompts"]:
    return prompt_counts(jax.random.fold_in(key, sample), num_prompts)


@jax.jit
def _means(
    counts: Float[Array, "samples prompts"], by_prompt: Float[Array, "prompts columns"]
) -> Float[Array, "samples columns"]:
    # Accelerators multiply in fewer bits unless they are told not to.
    return jnp.matmul(counts, by_prompt, precision=jax.lax.Precision.HIGHEST) / counts.shape[1]
