"""Resamples of the prompts: how often each is drawn, means over many of them, and their intervals.

A resample is a vector of counts, the same for every router and statistic, so that differences are paired.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Float64, Int, Key

from routerjax.errors import InputError

# Resamples drawn at once; those beyond the last one that is wanted are thrown away.
CHUNK_SAMPLES = 64
# A percentile of a million resamples is no better than one of a hundred thousand, and their statistics fill the memory.
MOST_SAMPLES = 100_000
# Without 64-bit types JAX keeps 32 bits of a seed: a larger one would silently be another.
SEEDS = 2**32


@dataclass(frozen=True)
class Resamples:
    """Resamples of any prompts: resample i depends on the seed, i and the number of prompts alone.

    Attributes:
        num_samples: 1 to 100,000.
        seed: 0 to 2**32 - 1.

    Raises:
        InputError: out of range.
    """

    num_samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MOST_SAMPLES:
            raise InputError(
                f"num_samples (--samples), the number of bootstrap resamples, must be in 1 to {MOST_SAMPLES:,}; 1,000 "
                f"is usual; got {self.num_samples}"
            )
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"seed must be in 0 to {SEEDS - 1}, got {self.seed}")

    def counts(self, num_prompts: int, *, progress: bool = False) -> Iterator[Float64[np.ndarray, "prompts"]]:
        """Yield how often each prompt is in each resample: whole numbers that sum to ``num_prompts``.

        Args:
            num_prompts: drawn with replacement from as many.
            progress: show a progress bar, if it takes more than two seconds.
        """
        key = jax.random.key(self.seed)
        with tqdm.tqdm(total=self.num_samples, unit="resample", disable=not progress, delay=2) as bar:
            for start in range(0, self.num_samples, CHUNK_SAMPLES):
                drawn = np.asarray(_draw(key, jnp.arange(start, start + CHUNK_SAMPLES), num_prompts))
                wanted = drawn[: self.num_samples - start]
                for row in wanted:
                    yield np.bincount(row, minlength=num_prompts).astype(np.float64)
                bar.update(len(wanted))


RESAMPLES = Resamples()
"""Number of resamples, as many as is usual."""


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


def bootstrap_means(
    columns: Float[np.ndarray, "columns prompts"], resamples: Resamples = RESAMPLES, *, progress: bool = False
) -> Float64[np.ndarray, "samples columns"]:
    """Mean of each column over the prompts of each resample.

    Args:
        columns: one value a prompt.
        resamples: of the prompts.
        progress: show a progress bar, if it takes more than two seconds.

    Example:
        >>> bootstrap_means(np.array([[2.0, 2.0, 2.0]]), Resamples(2)).tolist()
        [[2.0], [2.0]]
    """
    num_prompts = columns.shape[1]
    return np.stack([columns @ counts / num_prompts for counts in resamples.counts(num_prompts, progress=progress)])


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


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def _draw(key: Key[Array, ""], sample: Int[Array, ""], num_prompts: int) -> Int[Array, "prompts"]:
    return jax.random.randint(jax.random.fold_in(key, sample), (num_prompts,), 0, num_prompts)
