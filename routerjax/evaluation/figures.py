"""A figure with its interval; the names of the controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from routerjax import metrics

CONTROLS = ("random", "constant", "oracle")


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % bootstrap interval over prompts.

    Attributes:
        value: None where it is not reached (CPT and what follows from it).
        low: of the interval.
        high: of the interval; ``inf`` where more than 2.5 % of the resamples do not reach it.
    """

    value: float | None
    low: float
    high: float


def figure(value: float | None, samples: Float[np.ndarray, "samples"]) -> Figure:
    """The figure on all prompts, with the percentile interval of its resamples."""
    return Figure(value, *metrics.percentile_interval(samples))
