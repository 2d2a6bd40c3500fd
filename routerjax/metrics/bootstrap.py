"""Bootstrap over prompts: how far APGR and CPT would move had other prompts been asked.

A resample is a vector of counts, the same for every router, on an order of the prompts that is sorted once for each
router. So a resample costs cumulative sums, and routers are compared on the same prompts (paired).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from routerjax.errors import InputError
from routerjax.metrics.columns import Column
from routerjax.metrics.curve import Curve, apgr, binned_area, cpt, rank_prompts
from routerjax.metrics.resampling import RESAMPLES, Resamples


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


def bootstrap(
    win_prob: Mapping[str, Column],
    quality_strong: Column,
    quality_weak: Column,
    *,
    resamples: Resamples = RESAMPLES,
    targets: Sequence[float] = (0.5, 0.8),
    shares: Sequence[float] = (0.5,),
    progress: bool = False,
) -> dict[str, BootstrapSamples]:
    """Resample the prompts, with the same resamples for every router.

    Separate calls with the same resamples are paired, too. A difference between routers is ``samples["mf"].apgr -
    samples["knn"].apgr``; give it to :func:`routerjax.metrics.percentile_interval`.

    Args:
        win_prob: by router, ``[prompts]``, any finite scores.
        quality_strong: ``[prompts]``.
        quality_weak: ``[prompts]``.
        resamples: of the prompts.
        targets: PGRs for CPT.
        shares: strong shares in [0, 1] at which PGR is wanted, for the band of a curve.
        progress: show a progress bar, if it takes more than two seconds.

    Returns:
        By router, its statistics on each resample.

    Raises:
        InputError: as :func:`routerjax.metrics.cost_quality_curve`, no router, or shares outside [0, 1].

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
    rankings = {name: rank_prompts(column, quality_strong, quality_weak) for name, column in win_prob.items()}
    num_prompts = len(next(iter(rankings.values())).order)
    rows: dict[str, list[list[float]]] = {name: [] for name in rankings}
    for counts in resamples.counts(num_prompts, progress=progress):
        for name, ranking in rankings.items():
            curve = ranking.curve(counts)
            pgr = np.interp(shares, curve.strong_share, curve.pgr)
            rows[name].append(
                [apgr(curve), binned_area(curve, num_prompts), *(_cpt(curve, target) for target in targets), *pgr]
            )
    columns = {name: np.asarray(figures).T for name, figures in rows.items()}
    return {
        name: BootstrapSamples(
            apgr=column[0],
            apgr_binned=column[1],
            cpt=dict(zip(targets, column[2:], strict=False)),
            pgr=column[2 + len(targets) :].T,
        )
        for name, column in columns.items()
    }


def _cpt(curve: Curve, target: float) -> float:
    """CPT of a resample, which may be undefined (NaN) or infinite."""
    share = cpt(curve, target)
    return math.nan if math.isnan(curve.pgr[-1]) else math.inf if share is None else share
