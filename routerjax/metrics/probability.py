"""Calibration metrics: do win probabilities mean what they say? Labels may be soft: a tie is 0.5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from routerjax.errors import InputError
from routerjax.metrics.columns import Column, check_columns, check_probabilities

# Log-odds beyond this, 16 nats, are those of a float32 sigmoid that has saturated at 0 or 1.
SMALLEST_PROB = float(np.finfo(np.float32).eps)
NUM_BINS = 15


def log_loss(win_prob: Column, label: Column) -> float:
    """Mean negative log-likelihood in nats: ``mean(-label * log p - (1 - label) * log(1 - p))``.

    ``win_prob`` is clipped to ``[e, 1 - e]`` with e the resolution of float32, 1.2e-7, so that a saturated sigmoid on
    the wrong side costs 16 nats rather than infinity.

    Args:
        win_prob: ``[prompts]``, P(strong, or model_a, is better), in [0, 1].
        label: ``[prompts]``, in [0, 1]: 1 for a win, 0.5 for a tie, or a mixture.

    Raises:
        InputError: columns of different lengths, empty, not finite or outside [0, 1].

    Example:
        >>> log_loss(np.array([0.5, 0.5]), np.array([1.0, 0.5])).__round__(4)
        0.6931
    """
    return float(np.mean(_log_losses(*_checked(win_prob, label))))


def _log_losses(
    win_prob: Float[np.ndarray, "prompts"], label: Float[np.ndarray, "prompts"]
) -> Float[np.ndarray, "prompts"]:
    win_prob = np.clip(win_prob, SMALLEST_PROB, 1.0 - SMALLEST_PROB)
    return -(label * np.log(win_prob) + (1.0 - label) * np.log1p(-win_prob))


def brier(win_prob: Column, label: Column) -> float:
    """Mean squared error of the probability: ``mean((p - label) ** 2)``; 0 is perfect, a constant 0.5 has at most 0.25.

    Args:
        win_prob: ``[prompts]``, in [0, 1].
        label: ``[prompts]``, in [0, 1].

    Raises:
        InputError: as :func:`log_loss`.

    Example:
        >>> brier(np.array([0.5, 1.0]), np.array([1.0, 1.0]))
        0.125

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    win_prob, label = _checked(win_prob, label)
    return float(np.mean((win_prob - label) ** 2))


@dataclass(frozen=True)
class Reliability:
    """Outcomes of probabilities of one size, ``[bins]`` each; empty bins are left out.

    Attributes:
        win_prob: float64, mean of the probabilities in the bin, rising.
        label: float64, mean of their labels.
        count: int64, how many there are.
    """

    win_prob: Float64[np.ndarray, "bins"]
    label: Float64[np.ndarray, "bins"]
    count: Int64[np.ndarray, "bins"]


def reliability(win_prob: Column, label: Column, *, num_bins: int = NUM_BINS) -> Reliability:
    """Mean probability and mean outcome by size of the probability: the points of a reliability diagram.

    The bins are of equal width, (i / num_bins, (i + 1) / num_bins], the first one closed.

    Args:
        win_prob: ``[prompts]``, in [0, 1].
        label: ``[prompts]``, in [0, 1].
        num_bins: at least 1.

    Raises:
        InputError: as :func:`log_loss`, or ``num_bins`` below 1.

    Example:
        >>> bins = reliability(np.array([0.8, 0.8, 0.1]), np.array([1.0, 0.0, 0.0]), num_bins=2)
        >>> bins.label.tolist(), bins.count.tolist()
        ([0.0, 0.5], [1, 2])

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 2.
    """
    if num_bins < 1:
        raise InputError(f"num_bins must be at least 1; got {num_bins}")
    win_prob, label = _checked(win_prob, label)
    _, place, count = np.unique(_bin_of(win_prob, num_bins), return_inverse=True, return_counts=True)
    return Reliability(np.bincount(place, win_prob) / count, np.bincount(place, label) / count, count)


def _bin_of(win_prob: Float[np.ndarray, "prompts"], num_bins: int) -> Int64[np.ndarray, "prompts"]:
    return np.searchsorted(np.arange(1, num_bins) / num_bins, win_prob, side="left")


def expected_calibration_error(win_prob: Column, label: Column, *, num_bins: int = NUM_BINS) -> float:
    """Weighted mean gap between confidence and outcome: ``sum_b n_b / n * |mean label_b - mean p_b|``.

    The bins are those of :func:`reliability`; empty ones count nothing.

    Args:
        win_prob: ``[prompts]``, in [0, 1].
        label: ``[prompts]``, in [0, 1].
        num_bins: at least 1.

    Raises:
        InputError: as :func:`reliability`.

    Example:
        >>> expected_calibration_error(np.array([0.8, 0.8]), np.array([1.0, 0.0])).__round__(4)
        0.3

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3.
    """
    bins = reliability(win_prob, label, num_bins=num_bins)
    return float(np.average(np.abs(bins.label - bins.win_prob), weights=bins.count))


def calibration_columns(win_prob: Column, label: Column) -> Float64[np.ndarray, "columns prompts"]:
    """Terms of each prompt in log-loss, Brier score and calibration error; means over any resample give those.

    Returns:
        Row 0: each prompt's negative log-likelihood; row 1: its squared error; the other rows: for each bin that is not
        empty ``label - win_prob`` of its prompts, else 0. The sum of the absolute means of these is
        :func:`expected_calibration_error`.

    Args:
        win_prob: ``[prompts]``, in [0, 1].
        label: ``[prompts]``, in [0, 1].

    Raises:
        InputError: as :func:`log_loss`.
    """
    win_prob, label = _checked(win_prob, label)
    bins, place = np.unique(_bin_of(win_prob, NUM_BINS), return_inverse=True)
    residual = np.where(place == np.arange(len(bins))[:, None], label - win_prob, 0.0)
    return np.concatenate([[_log_losses(win_prob, label), (win_prob - label) ** 2], residual])


def _checked(win_prob: Column, label: Column) -> tuple[Float[np.ndarray, "prompts"], Float[np.ndarray, "prompts"]]:
    win_prob, label = check_columns({"win_prob": win_prob, "label": label})
    check_probabilities("win_prob", win_prob)
    check_probabilities("label", label)
    return win_prob, label
