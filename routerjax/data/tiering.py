"""Tiers of models of about equal strength, from their battles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from routerjax import bradley_terry
from routerjax.data.preferences import Preferences
from routerjax.errors import InputError


@dataclass(frozen=True, eq=False)
class Tiering:
    """Strength of models.

    Attributes:
        models: names, in the order of the battles' vocabulary.
        ratings: float32 ``[models]``, in nats, of mean zero.
        tier: int32 ``[models]``, 0 = strongest.
    """

    models: tuple[str, ...]
    ratings: Float32[np.ndarray, "models"]
    tier: Int32[np.ndarray, "models"]


def tier_models(battles: Preferences, num_tiers: int = 10, *, prior: float = 1e-4) -> Tiering:
    """Rate all models by Bradley-Terry, and split them into tiers of least variance.

    Args:
        battles: in which every model of the vocabulary takes part, and which connect all models.
        num_tiers: tiers, none of them empty.
        prior: see :func:`routerjax.bradley_terry.fit`.

    Raises:
        InputError: a model without battles, models that no chain of battles compares, or ``num_tiers`` outside
            1..models.

    Reference:
        RouteLLM (arXiv 2406.18665), section 4.1 and appendix A.
    """
    wins = bradley_terry.win_matrix(
        battles.model_a, battles.model_b, battles.label, battles.weight, num_models=len(battles.models)
    )
    apart = ~_connected_to_first(wins > 0)
    if apart.any():
        first, other = battles.models[0], battles.models[np.flatnonzero(apart)[0]]
        raise InputError(
            f"{other} and {first} cannot be rated on one scale: no chain of battles connects them ({apart.sum()} of "
            f"{len(apart)} models lie apart); select battles that do, and drop models without any "
            "(without_unused_models)"
        )
    ratings = np.asarray(bradley_terry.fit(wins, prior=prior))
    return Tiering(battles.models, ratings, bradley_terry.tiers(ratings, num_tiers))


def _connected_to_first(met: np.ndarray) -> np.ndarray:
    """Bool ``[models]``: those that chains of battles connect to the first model."""
    met = met | met.T
    reached = np.arange(len(met)) == 0
    while True:
        grown = reached | met[reached].any(axis=0)
        if (grown == reached).all():
            return reached
        reached = grown
