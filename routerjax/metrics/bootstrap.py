"""Bootstrap over prompts: how far APGR and CPT would move had other prompts been asked.

A resample is a vector of counts, the same for every router, on an order of the prompts that is sorted once for each
router. So a resample costs cumulative sums, and routers are compared on the same prompts (paired).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from routerjax.errors import InputError
from routerjax.metrics.columns import Column, check_columns, quality_gain

# Elements of one intermediate array; a dozen such arrays are alive at a time.
CHUNK_ELEMENTS = 2**20
# Resamples computed at once; those beyond the last one that is wanted are thrown away.
CHUNK_SAMPLES = 64

StatisticsT = TypeVar("StatisticsT")


class Interval(NamedTuple):
    """A range of a statistic over resamples."""

    low: float
    high: float


class Ranking(NamedTuple):
    """One router's prompts from the highest score to the lowest.

    Attributes:
        order: int32 ``[prompts]``, the prompt at each rank.
        last: int32 ``[prompts]``, the rank at which the group of equal scores of each rank ends.
        gain: float32 ``[prompts]``, strong minus weak quality of the prompt at each rank.
    """

    order: Int[Array, "prompts"]
    last: Int[Array, "prompts"]
    gain: Float[Array, "prompts"]


@dataclass(frozen=True)
class BootstrapSamples:
    """Statistics of one router, float64 ``[samples]``; entry i is on the same resample for all routers.

    Attributes:
        apgr: NaN where the resample has models of equal mean quality.
        cpt: by target; ``inf`` where the resample's curve never reaches it, NaN as for ``apgr``.
        pgr: ``[samples, shares]``, at the wanted strong shares, NaN as for ``apgr``.
    """

    apgr: Float[np.ndarray, "samples"]
    cpt: Mapping[float, Float[np.ndarray, "samples"]]
    pgr: Float[np.ndarray, "samples shares"]

    def reached(self, target: float) -> float:
        """Share of the resamples in which the router's PGR reaches ``target``."""
        return float(np.isfinite(self.cpt[target]).mean())


def rank_prompts(win_prob: Column, quality_strong: Column, quality_weak: Column) -> Ranking:
    """Sort the prompts of one router, once for all resamples.

    Raises:
        InputError: as :func:`routerjax.metrics.cost_quality_curve`.
    """
    win_prob, quality_strong, quality_weak = check_columns(
        {"win_prob": win_prob, "quality_strong": quality_strong, "quality_weak": quality_weak}
    )
    order = np.argsort(-win_prob, kind="stable")
    score = win_prob[order]
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    gain = quality_gain(quality_strong, quality_weak)[order]
    # Scale drops out of PGR; a largest gain of 1 keeps float32 in range.
    gain = gain / np.abs(gain).max()
    last = ends[np.searchsorted(ends, np.arange(len(score)))]
    return Ranking(jnp.asarray(order, jnp.int32), jnp.asarray(last, jnp.int32), jnp.asarray(gain, jnp.float32))


def prompt_counts(key: Key[Array, ""], num_prompts: int) -> Float[Array, "prompts"]:
    """How often each prompt is drawn in ``num_prompts`` draws with replacement: float32 integers that sum to it."""
    drawn = jax.random.randint(key, (num_prompts,), 0, num_prompts)
    return jnp.zeros(num_prompts, jnp.float32).at[drawn].add(1.0)


def over_resamples(
    statistics: Callable[[Float[Array, "samples prompts"]], StatisticsT],
    *,
    num_prompts: int,
    num_samples: int,
    seed: int,
    elements: int,
) -> StatisticsT:
    """What ``statistics`` of the prompts' counts are on each resample: leaves float64 ``[samples, ...]``.

    Resamples are taken in chunks of one size whatever their number, so that ``statistics`` is compiled once.

    Args:
        statistics: of counts ``[samples, prompts]``, see :func:`prompt_counts`, to leaves ``[samples, ...]``.
        num_prompts: in the benchmark.
        num_samples: resamples, at least 1.
        seed: of the resamples.
        elements: numbers that ``statistics`` holds for one resample; bounds a chunk.
    """
    key = jax.random.key(seed)
    chunk = min(CHUNK_SAMPLES, max(1, CHUNK_ELEMENTS // elements))
    parts = [
        statistics(_resample(key, jnp.arange(start, start + chunk), num_prompts))
        for start in range(0, num_samples, chunk)
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, dtype=np.float64)[:num_samples], *parts)


def weighted_apgr_and_cpt(
    counts: Float[Array, "prompts"], ranking: Ranking, targets: Float[Array, "targets"]
) -> tuple[Float[Array, ""], Float[Array, "targets"]]:
    """APGR and CPT with each prompt taken ``counts`` times; pure, jits and vmaps.

    With all counts one it is :func:`routerjax.metrics.apgr` and :func:`routerjax.metrics.cpt` in float32.

    Args:
        counts: float32, non-negative, by prompt (not by rank).
        ranking: of one router, from :func:`rank_prompts`.
        targets: PGRs to reach.

    Returns:
        APGR, and CPT of each target: ``inf`` where it is not reached; both NaN where the mean qualities are equal.
    """
    share, pgr = _weighted_curve(counts, ranking)
    # Integrating what is above the diagonal, whose area is 1/2, sums smaller numbers: less rounding.
    above = pgr - share
    apgr = 0.5 + jnp.sum(jnp.diff(share) * (above[1:] + above[:-1])) / 2.0

    def first_share(target: Float[Array, ""]) -> Float[Array, ""]:
        reached: Bool[Array, "points"] = pgr >= target
        after = jnp.argmax(reached)
        before = jnp.maximum(after - 1, 0)
        fraction = (target - pgr[before]) / (pgr[after] - pgr[before])
        crossing = share[before] + fraction * (share[after] - share[before])
        return jnp.where(jnp.any(reached), jnp.where(after == 0, 0.0, crossing), jnp.inf)

    # NaN passes through the sum by itself; a comparison with NaN is false.
    return apgr, jnp.where(jnp.isnan(pgr[-1]), jnp.nan, jax.vmap(first_share)(targets))


def weighted_pgr(
    counts: Float[Array, "prompts"], ranking: Ranking, shares: Float[Array, "shares"]
) -> Float[Array, "shares"]:
    """PGR at strong shares with each prompt taken ``counts`` times, linear between the points; pure, jits and vmaps.

    With all counts one it is :func:`routerjax.metrics.cost_quality_curve` at these shares in float32.

    Args:
        counts: float32, non-negative, by prompt (not by rank).
        ranking: of one router, from :func:`rank_prompts`.
        shares: in [0, 1].

    Returns:
        PGR at each share; NaN where the mean qualities are equal.
    """
    share, pgr = _weighted_curve(counts, ranking)
    return jnp.interp(shares, share, pgr)


def _weighted_curve(
    counts: Float[Array, "prompts"], ranking: Ranking
) -> tuple[Float[Array, "points"], Float[Array, "points"]]:
    """Strong share and PGR, from the share 0 to the share 1, equal points repeated. PGR is NaN without a gap."""
    count = counts[ranking.order]
    # Counts, and gains that are whole or half numbers, stay exact in float32, so that a curve which touches a target
    # exactly is seen to. A quotient is correctly rounded, so it equals the target then.
    calls, gained = jnp.cumsum(jnp.stack([count, count * ranking.gain]), axis=1)[:, ranking.last]
    calls, gained = jnp.pad(calls, (1, 0)), jnp.pad(gained, (1, 0))
    return calls / calls[-1], jnp.where(gained[-1] == 0.0, jnp.nan, gained / gained[-1])


def bootstrap(
    win_prob: Mapping[str, Column],
    quality_strong: Column,
    quality_weak: Column,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    targets: Sequence[float] = (0.5, 0.8),
    shares: Sequence[float] = (0.5,),
) -> dict[str, BootstrapSamples]:
    """Resample the prompts, with the same resamples for every router.

    Resample i depends on ``seed``, i and the number of prompts alone, so separate calls are paired too. A difference
    between routers is ``samples["mf"].apgr - samples["knn"].apgr``; give it to :func:`percentile_interval`.

    Args:
        win_prob: by router, ``[prompts]``, any finite scores.
        quality_strong: ``[prompts]``.
        quality_weak: ``[prompts]``.
        num_samples: resamples.
        seed: of the resamples.
        targets: PGRs for CPT.
        shares: strong shares in [0, 1] at which PGR is wanted, for the band of a curve.

    Returns:
        By router, its statistics on each resample.

    Raises:
        InputError: as :func:`routerjax.metrics.cost_quality_curve`, no router, ``num_samples`` below 1, or shares that
            are none.

    Example:
        >>> strong, weak = np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
        >>> samples = bootstrap({"good": np.array([0.9, 0.8, 0.2, 0.1]), "constant": np.full(4, 0.5)}, strong, weak)
        >>> percentile_interval(samples["constant"].apgr)
        Interval(low=0.5, high=0.5)
        >>> bool(np.nanmin(samples["good"].apgr - samples["constant"].apgr) >= 0.0)
        True

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", chapters 6 and 13.
    """
    if not win_prob:
        raise InputError("bootstrap needs the win probabilities of at least one router; got none")
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1; got {num_samples}")
    if not all(math.isfinite(target) for target in targets):
        raise InputError(f"PGR targets must be finite, such as 0.5; got {list(targets)}")
    if not shares or not all(0.0 <= share <= 1.0 for share in shares):
        raise InputError(f"strong shares must be at least one number in [0, 1], such as 0.5; got {list(shares)}")
    ranked = [rank_prompts(column, quality_strong, quality_weak) for column in win_prob.values()]
    rankings = Ranking(*(jnp.asarray(np.stack(leaves)) for leaves in zip(*ranked, strict=True)))
    apgr, cpt, pgr = over_resamples(
        lambda counts: _statistics(
            counts, rankings, jnp.asarray(targets, jnp.float32), jnp.asarray(shares, jnp.float32)
        ),
        num_prompts=rankings.order.shape[1],
        num_samples=num_samples,
        seed=seed,
        elements=rankings.order.size,
    )
    return {
        name: BootstrapSamples(
            apgr=apgr[:, row],
            cpt={target: cpt[:, row, column] for column, target in enumerate(targets)},
            pgr=pgr[:, row],
        )
        for row, name in enumerate(win_prob)
    }


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


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None, None))
def _statistics(
    counts: Float[Array, "prompts"],
    rankings: Ranking,
    targets: Float[Array, "targets"],
    shares: Float[Array, "shares"],
) -> tuple[Float[Array, "routers"], Float[Array, "routers targets"], Float[Array, "routers shares"]]:
    """APGR, CPT and PGR of each router; the leaves of ``rankings`` are stacked over routers."""
    apgr, cpt = jax.vmap(weighted_apgr_and_cpt, in_axes=(None, 0, None))(counts, rankings, targets)
    return apgr, cpt, jax.vmap(weighted_pgr, in_axes=(None, 0, None))(counts, rankings, shares)


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(None, 0, None))
def _resample(key: Key[Array, ""], sample: Int[Array, ""], num_prompts: int) -> Float[Array, "prompts"]:
    return prompt_counts(jax.random.fold_in(key, sample), num_prompts)
