"""Tiers of models of about equal strength, from their battles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from routerjax import bradley_terry
from routerjax.data.preferences import Preferences


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
    """Rate all models by Bradley-Terry, and split them into tiers whose variances have the least sum.

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
    columns = (battles.model_a, battles.model_b, battles.label, battles.weight)
    ratings, tier = bradley_terry.rated_tiers(*columns, models=battles.models, num_tiers=num_tiers, prior=prior)
    return Tiering(battles.models, ratings, tier)
