"""Routing decisions: one threshold for two models, score minus cost for many."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from routerjax.errors import InputError
from routerjax.metrics.columns import real_array


class Threshold(NamedTuple):
    """A threshold, and the share of the calibration prompts that it sends to the strong model."""

    threshold: float
    strong_share: float


def require_share(strong_share: float) -> None:
    """Raise InputError unless a share of strong calls is a number in [0, 1]."""
    if not (isinstance(strong_share, numbers.Real) and 0.0 <= strong_share <= 1.0):
        raise InputError(f"the wanted strong share must lie in [0, 1], such as 0.5; got {strong_share!r}")


def threshold_for_share(
    win_prob: Float[np.ndarray, "prompts"] | Float[Array, "prompts"], strong_share: float
) -> Threshold:
    """Threshold that sends the largest attainable share of these prompts to the strong model, at most ``strong_share``.

    Prompts with equal win probabilities move together, so the attained share can be smaller than the wanted one. The
    threshold is one of the win probabilities (0 for what float32 holds only as a subnormal number), or, where the
    attained share is 0, the next number above the largest of them (``inf`` where that is 1: nothing in [0, 1] lies
    above). It is exact in the type of ``win_prob``, so that
    ``win_prob >= threshold`` gives the attained share in float32 and in float64.

    Args:
        win_prob: calibration prompts', in [0, 1].
        strong_share: wanted share in [0, 1] of strong calls.

    Returns:
        The threshold and the attained share.

    Raises:
        InputError: win probabilities that are empty, not finite or outside [0, 1]; a share outside [0, 1].

    Example:
        >>> threshold_for_share(np.array([0.1, 0.4, 0.4, 0.9]), 0.6)
        Threshold(threshold=0.9, strong_share=0.25)

    Reference:
        RouteLLM (arXiv 2406.18665), section 3.1; the (1 - share) quantile, exact under ties.
    """
    require_share(strong_share)
    win_prob = _checked_win_prob(win_prob)
    # XLA flushes subnormal numbers to zero; a threshold there would mean another share in JAX than in numpy.
    smallest = float(np.finfo(np.float32).tiny)
    win_prob = np.where(win_prob < smallest, 0, win_prob).astype(win_prob.dtype)
    distinct, count = np.unique(win_prob, return_counts=True)
    share = np.cumsum(count[::-1]) / win_prob.size
    attainable = np.flatnonzero(share <= strong_share)
    if attainable.size:
        best = int(attainable[-1])
        return Threshold(float(distinct[::-1][best]), float(share[best]))
    largest = distinct[-1]
    above = max(float(np.nextafter(largest, largest.dtype.type(2.0))), smallest)
    return Threshold(above if above <= 1.0 else math.inf, 0.0)


def route(win_prob: Float[np.ndarray, "batch"] | Float[Array, "batch"], threshold: float) -> Bool[np.ndarray, "batch"]:
    """Decide for each prompt: ``win_prob >= threshold``.

    Args:
        win_prob: P(the strong model is better), in [0, 1].
        threshold: in [0, 1], higher is cheaper; or ``inf``, which sends nothing to the strong model.

    Returns:
        True for the strong model.

    Raises:
        InputError: win probabilities that are empty, not finite or outside [0, 1]; a threshold that is neither in
            [0, 1] nor ``inf``.

    Example:
        >>> route(np.array([0.2, 0.7]), 0.7).tolist()
        [False, True]

    Reference:
        RouteLLM (arXiv 2406.18665), section 3.1.
    """
    if not (isinstance(threshold, numbers.Real) and (0.0 <= threshold <= 1.0 or threshold == math.inf)):
        raise InputError(f"the threshold must lie in [0, 1], or be inf for never; got {threshold!r}")
    # In float64, or numpy would round the threshold to float32 and could make it equal to a smaller win probability.
    return _checked_win_prob(win_prob).astype(np.float64) >= float(threshold)


def route_by_cost(
    scores: Float[Array, "batch models"],
    cost: Float[Array, "models"] | Float[Array, "batch models"],
    cost_weight: float | Float[Array, ""],
) -> Int[Array, "batch"]:
    """Choose among any number of models: ``argmax_m scores[m] - cost_weight * cost[m]``; pure, jits.

    The first of equal models wins.

    Args:
        scores: in nats, a higher one is better.
        cost: of each model, or of each model on each prompt, in dollars for example.
        cost_weight: nats a unit of cost is worth, at least 0; 0 always takes the highest score.

    Returns:
        int32 column of the chosen model.

    Raises:
        InputError: shapes that do not match.

    Example:
        >>> route_by_cost(jnp.array([[2.0, 1.0], [5.0, 1.0]]), jnp.array([10.0, 1.0]), 0.2).tolist()
        [1, 0]
    """
    scores, cost = jnp.asarray(scores), jnp.asarray(cost)
    if scores.ndim != 2 or scores.shape[1] == 0 or cost.shape not in (scores.shape, scores.shape[1:]):
        raise InputError(
            "scores must be [batch, models], of at least one model, and cost [models] or [batch, models]; "
            f"got scores {scores.shape} and cost {cost.shape}"
        )
    utility = scores - cost_weight * jnp.broadcast_to(cost, scores.shape)
    return jnp.argmax(utility, axis=-1).astype(jnp.int32)


def _checked_win_prob(win_prob: Float[np.ndarray, "batch"] | Float[jax.Array, "batch"]) -> np.ndarray:
    """Convert to float32, or to float64 where it is wider, which keeps every value, and check it."""
    checked = real_array(win_prob, "win_prob")
    checked = checked.astype(np.float32 if checked.dtype.itemsize <= 4 else np.float64)
    if checked.ndim != 1 or checked.size == 0:
        raise InputError(f"win_prob must be a non-empty vector, one number for each prompt; got shape {checked.shape}")
    bad = np.flatnonzero(~((checked >= 0.0) & (checked <= 1.0)))
    if bad.size:
        raise InputError(
            f"win_prob must be finite and lie in [0, 1]; row {bad[0]} is {checked[bad[0]]} ({bad.size} such rows)"
        )
    return checked
