"""Bootstrap over prompts: how far APGR and CPT would move had other prompts been asked.

A resample is a vector of counts, the same for every router, on an order of the prompts that is sorted once for each
router. So a resample costs cumulative sums, and routers are compared on the same prompts (paired).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from routerjax.errors import InputError
from routerjax.metrics.columns import Column, check_columns, quality_gain
from routerjax.metrics.curve import quantile_fractions
from routerjax.metrics.resampling import over_resamples


class Ranking(NamedTuple):
    """Prompts of one router from the highest score to the lowest.

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
        apgr_binned: as RouteLLM computes it, with ten bins; NaN as for ``apgr``.
        cpt: by target; ``inf`` where the resample's curve never reaches it, NaN as for ``apgr``.
        pgr: ``[samples, shares]``, at the wanted strong shares, NaN as for ``apgr``.
    """

    apgr: Float[np.ndarray, "samples"]
    apgr_binned: Float[np.ndarray, "samples"]
    cpt: Mapping[float, Float[np.ndarray, "samples"]]
    pgr: Float[np.ndarray, "samples shares"]


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

    def first_share(target: Float[Array, ""]) -> Float[Array, ""]:
        reached: Bool[Array, "points"] = pgr >= target
        after = jnp.argmax(reached)
        before = jnp.maximum(after - 1, 0)
        fraction = (target - pgr[before]) / (pgr[after] - pgr[before])
        crossing = share[before] + fraction * (share[after] - share[before])
        return jnp.where(jnp.any(reached), jnp.where(after == 0, 0.0, crossing), jnp.inf)

    # NaN passes through the sum by itself; a comparison with NaN is false.
    return _area(share, pgr), jnp.where(jnp.isnan(pgr[-1]), jnp.nan, jax.vmap(first_share)(targets))


def weighted_apgr_binned(
    counts: Float[Array, "prompts"], ranking: Ranking, *, num_thresholds: int = 10
) -> Float[Array, ""]:
    """RouteLLM's APGR with each prompt taken ``counts`` times, :func:`routerjax.metrics.apgr_binned`; jits and vmaps.

    Args:
        counts: float32, non-negative, by prompt (not by rank), summing to the number of prompts.
        ranking: of one router, from :func:`rank_prompts`.
        num_thresholds: quantile bins, at least 1; static.

    Returns:
        The area in float32; NaN where the mean qualities are equal.
    """
    share, pgr = _weighted_curve(counts, ranking)
    num_prompts = ranking.order.shape[0]
    # An edge between two drawn scores selects what lies above it, an edge at a score that score and its equals too: so
    # each selects the draws from a whole place on, counted from the lowest.
    place = np.ceil((num_prompts - 1) * quantile_fractions(num_thresholds)[1:-1])
    # The group of equal scores of the draw at that place ends at the first share beyond the draws above it; one half
    # keeps clear of the rounding of a quotient.
    above = np.sort(num_prompts - 1 - place) + 0.5
    point = jnp.searchsorted(share, jnp.asarray(above / num_prompts, jnp.float32))
    ends = jnp.array([0, len(share) - 1])
    point = jnp.concatenate([ends[:1], point, ends[1:]])
    return _area(share[point], pgr[point])


def _area(share: Float[Array, "points"], pgr: Float[Array, "points"]) -> Float[Array, ""]:
    # Integrating what is above the diagonal, whose area is 1/2, sums smaller numbers: less rounding.
    above = pgr - share
    return 0.5 + jnp.sum(jnp.diff(share) * (above[1:] + above[:-1])) / 2.0


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
    progress: bool = False,
) -> dict[str, BootstrapSamples]:
    """Resample the prompts, with the same resamples for every router.

    Resample i depends on ``seed``, i and the number of prompts alone, so separate calls are paired too. A difference
    between routers is ``samples["mf"].apgr - samples["knn"].apgr``; give it to
    :func:`routerjax.metrics.percentile_interval`.

    Args:
        win_prob: by router, ``[prompts]``, any finite scores.
        quality_strong: ``[prompts]``.
        quality_weak: ``[prompts]``.
        num_samples: resamples, 1 to 100,000.
        seed: of the resamples, 0 to 2**32 - 1.
        targets: PGRs for CPT.
        shares: strong shares in [0, 1] at which PGR is wanted, for the band of a curve.
        progress: show a progress bar, if it takes more than two seconds.

    Returns:
        By router, its statistics on each resample.

    Raises:
        InputError: as :func:`routerjax.metrics.cost_quality_curve`, no router, shares outside [0, 1], or
            ``num_samples`` or ``seed`` out of range.

    Example:
        >>> strong, weak = np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
        >>> samples = bootstrap({"good": np.array([0.9, 0.8, 0.2, 0.1]), "constant": np.full(4, 0.5)}, strong, weak)
        >>> np.nanmax(np.abs(samples["constant"].apgr - 0.5)).item()
        0.0
        >>> bool(np.nanmin(samples["good"].apgr - samples["constant"].apgr) >= 0.0)
        True

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", chapters 6 and 13.
    """
    if not win_prob:
        raise InputError("bootstrap needs the win probabilities of at least one router; got none")
    if not all(math.isfinite(target) for target in targets):
        raise InputError(f"PGR targets must be finite, such as 0.5; got {list(targets)}")
    if not shares or not all(0.0 <= share <= 1.0 for share in shares):
        raise InputError(f"strong shares must be at least one number in [0, 1], such as 0.5; got {list(shares)}")
    ranked = [rank_prompts(column, quality_strong, quality_weak) for column in win_prob.values()]
    rankings = Ranking(*(jnp.asarray(np.stack(leaves)) for leaves in zip(*ranked, strict=True)))
    apgr, apgr_binned, cpt, pgr = over_resamples(
        lambda counts: _statistics(
            counts, rankings, jnp.asarray(targets, jnp.float32), jnp.asarray(shares, jnp.float32)
        ),
        num_prompts=rankings.order.shape[1],
        num_samples=num_samples,
        seed=seed,
        elements=rankings.order.size,
        progress=progress,
    )
    return {
        name: BootstrapSamples(
            apgr=apgr[:, row],
            apgr_binned=apgr_binned[:, row],
            cpt={target: cpt[:, row, column] for column, target in enumerate(targets)},
            pgr=pgr[:, row],
        )
        for row, name in enumerate(win_prob)
    }


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None, None))
def _statistics(
    counts: Float[Array, "prompts"],
    rankings: Ranking,
    targets: Float[Array, "targets"],
    shares: Float[Array, "shares"],
) -> tuple[
    Float[Array, "routers"], Float[Array, "routers"], Float[Array, "routers targets"], Float[Array, "routers shares"]
]:
    """APGR, the same in bins, CPT and PGR of each router; the leaves of ``rankings`` are stacked over routers."""
    apgr, cpt = jax.vmap(weighted_apgr_and_cpt, in_axes=(None, 0, None))(counts, rankings, targets)
    binned = jax.vmap(weighted_apgr_binned, in_axes=(None, 0))(counts, rankings)
    return apgr, binned, cpt, jax.vmap(weighted_pgr, in_axes=(None, 0, None))(counts, rankings, shares)
