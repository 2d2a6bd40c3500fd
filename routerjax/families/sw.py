"""Similarity-weighted ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routerjax.errors import InputError
from routerjax.families.family import Family, register_family
from routerjax.likelihoods import BradleyTerry
from routerjax.models import SimilarityWeighted, battle_tiers, similarity_weighted_memory
from routerjax.typing import PreferenceBatch, Variables


def _remember(module: SimilarityWeighted, battles: PreferenceBatch, names: Sequence[str] | None) -> Variables:
    tier = battle_tiers(battles, num_models=module.num_models, num_tiers=module.num_tiers, names=names)
    return similarity_weighted_memory(battles, tier=tier)


def _require_pair(variables: Variables, models: Sequence[str], strong: str, weak: str) -> None:
    tier = np.asarray(variables["memory"]["tier"])
    if tier[models.index(strong)] == tier[models.index(weak)]:
        together = int(np.sum(tier == tier[models.index(strong)]))
        raise InputError(
            f"{strong} and {weak} fall into one tier (of {together} models), so that every prompt would have the win "
            "probability 0.5: take another num_tiers (0 rates every model by itself), or another pair"
        )


SW = register_family(
    Family(
        name="sw",
        module=SimilarityWeighted,
        trains=False,
        remember=_remember,
        likelihood=BradleyTerry,
        require_pair=_require_pair,
    )
)
