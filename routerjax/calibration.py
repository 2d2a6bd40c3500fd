"""Calibration of win probabilities: a monotone map, fitted to held-out battles, that makes them mean what they say.

Temperature and Platt scaling act on the log-odds, ``sigmoid(slope * logit(p) + intercept)``; isotonic regression is a
non-decreasing piecewise linear map. None of them changes the order of prompts, except that isotonic regression ties
neighbours. What is fitted is a pytree of arrays, the ``calibration`` collection of a router's variables, so that it is
saved, loaded and exported with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int

from routerjax.errors import InputError, choose
from routerjax.metrics.columns import Column, check_columns, check_probabilities
from routerjax.metrics.probability import SMALLEST_PROB

Calibration = Mapping[str, Array]
"""``slope`` and ``intercept``, scalars; or ``knots`` and ``values``, both ``[knots]`` and non-decreasing."""


def fit_calibration(win_prob: Column, label: Column, *, method: str) -> Calibration:
    """Fit the map that makes the log-loss (isotonic: the squared error) least, on battles that were not trained on.

    Args:
        win_prob: ``[battles]``, the router's own, P(strong is better).
        label: ``[battles]`` in [0, 1]: 1 where the strong model won, a tie 0.5.
        method: ``temperature`` (the slope alone: symmetric in the two models), ``platt`` (slope and intercept) or
            ``isotonic``, which wants a thousand battles or more.

    Returns:
        float32 arrays, for :func:`apply_calibration`.

    Raises:
        InputError: an unknown method; columns of different lengths, not finite or outside [0, 1]; labels that are all
            the same; win probabilities that are worse than none, whose best slope is not positive, or that separate
            wins from losses without an error, for which no slope is best.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599); Platt 1999; Zadrozny and Elkan 2002.
    """
    fit = choose(method, METHODS, "the calibration method")
    win_prob, label = check_columns({"win_prob": win_prob, "label": label})
    check_probabilities("win_prob", win_prob)
    check_probabilities("label", label)
    if np.ptp(label) == 0:
        raise InputError(f"one class only: every label is {label[0]:g}; calibration needs battles that end differently")
    return {name: jnp.asarray(array, jnp.float32) for name, array in fit(win_prob, label).items()}


def _fit_isotonic(
    win_prob: Float[np.ndarray, "battles"], label: Float[np.ndarray, "battles"]
) -> Mapping[str, np.ndarray]:
    from sklearn.isotonic import IsotonicRegression  # a second of imports that only fitting needs

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(win_prob, label)
    return {"knots": fitted.X_thresholds_, "values": fitted.y_thresholds_}


def _fit_log_odds(
    win_prob: Float[np.ndarray, "battles"], label: Float[np.ndarray, "battles"], *, intercept: bool
) -> Mapping[str, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    logit = scipy.special.logit(np.clip(win_prob, SMALLEST_PROB, 1.0 - SMALLEST_PROB))[:, None]
    lowest_win, highest_loss = logit[label > 0].min(), logit[label < 1].max()
    is_separable = highest_loss <= lowest_win if intercept else highest_loss <= 0 <= lowest_win
    if is_separable and np.ptp(logit) > 0:  # the steeper the better, without end
        raise InputError(
            f"the win probabilities separate these {len(label)} battles without an error, so that no finite slope is "
            "best: calibrate on more battles, among them some that end against the router's expectation"
        )
    # A soft label is a win and a loss, each with its share.
    regression = LogisticRegression(C=np.inf, fit_intercept=intercept, tol=1e-8, max_iter=1000).fit(
        np.concatenate([logit, logit]),
        np.repeat([1, 0], len(label)),
        sample_weight=np.concatenate([label, 1 - label]),
    )
    slope = regression.coef_[0, 0]
    if not slope > 0:
        raise InputError(
            f"the win probabilities tell nothing about these battles: the best slope is {slope:.3g}, which would "
            "turn the order of prompts around; calibrate on battles of the kind that the router was trained for"
        )
    return {"slope": slope, "intercept": np.ravel(regression.intercept_)[0]}


METHODS: Mapping[str, Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]] = {
    "temperature": functools.partial(_fit_log_odds, intercept=False),
    "platt": functools.partial(_fit_log_odds, intercept=True),
    "isotonic": _fit_isotonic,
}


def apply_calibration(calibration: Calibration, win_prob: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """Apply a calibration to win probabilities; pure, jits and exports.

    Example:
        >>> double = {"slope": jnp.float32(2.0), "intercept": jnp.float32(0.0)}
        >>> float(apply_calibration(double, jnp.array([0.75]))[0]).__round__(4)
        0.9
    """
    if "knots" in calibration:
        return _interpolate(win_prob, calibration["knots"], calibration["values"])
    clipped = jnp.clip(win_prob, SMALLEST_PROB, 1.0 - SMALLEST_PROB)
    return jax.nn.sigmoid(calibration["slope"] * (jnp.log(clipped) - jnp.log1p(-clipped)) + calibration["intercept"])


@jax.jit
def _interpolate(
    win_prob: Float[Array, "batch"], knots: Float[Array, "knots"], values: Float[Array, "knots"]
) -> Float[Array, "batch"]:
    """Compute what ``jnp.interp`` does, in operations that ONNX has, too."""
    # The search is a comparison with each knot, whose sum XLA makes without an array of them.
    upper = jnp.clip(jnp.sum(knots[None, :] <= win_prob[:, None], axis=1), 1, len(knots) - 1)
    left, right = knots[upper - 1], knots[upper]
    is_step = right - left <= np.spacing(np.finfo(np.float32).eps)
    share = (win_prob - left) / jnp.where(is_step, 1.0, right - left)
    between = values[upper - 1] + jnp.where(is_step, 0.0, share) * (values[upper] - values[upper - 1])
    inside = jnp.where(win_prob < knots[0], values[0], between)
    return jnp.where(win_prob > knots[-1], values[-1], inside)


def cross_fitted(
    win_prob: Column,
    label: Column,
    prompt: Int[np.ndarray, "battles"],
    *,
    method: str,
    num_folds: int = 5,
    seed: int = 0,
) -> Float[np.ndarray, "battles"]:
    """Calibrate each battle's win probability by a map that was fitted to the battles on other folds of the prompts.

    What it says about log-loss and calibration error is then not flattered by the fit.

    Args:
        win_prob, label, method: as :func:`fit_calibration`.
        prompt: ``[battles]``, which prompt a battle was fought on, from 0 on: battles on one prompt share a fold.
        num_folds: of about equal size, drawn at random.
        seed: of the draw.

    Raises:
        InputError: as :func:`fit_calibration`, or fewer prompts than folds.
    """
    win_prob, label = np.asarray(win_prob, np.float64), np.asarray(label, np.float64)
    num_prompts = int(prompt.max()) + 1
    if num_prompts < num_folds:
        raise InputError(f"calibration needs battles on at least {num_folds} prompts, got {num_prompts}")
    fold = (np.random.default_rng(seed).permutation(num_prompts) % num_folds)[prompt]
    calibrated = np.empty(len(win_prob))
    for held_out in range(num_folds):
        is_held_out, is_fitted = fold == held_out, fold != held_out
        fitted = fit_calibration(win_prob[is_fitted], label[is_fitted], method=method)
        calibrated[is_held_out] = apply_calibration(fitted, jnp.asarray(win_prob[is_held_out], jnp.float32))
    return calibrated
