"""Nearest neighbours."""

from __future__ import annotations

import logging

import flax.linen as nn

from routerjax.families.family import Family, register_family
from routerjax.likelihoods import BradleyTerry
from routerjax.models import NearestNeighbors, nearest_neighbors_memory
from routerjax.typing import PreferenceBatch, Variables

logger = logging.getLogger(__name__)


def _remember(module: nn.Module, battles: PreferenceBatch, models: object) -> Variables:
    assert isinstance(module, NearestNeighbors)
    prompts = len(battles.query["embedding"])
    if module.k >= prompts:
        logger.warning(
            "all %d prompts that knn remembers are among the %d nearest neighbours of any: every new prompt gets the "
            "same scores; set router.attributes.k, or give more prompts",
            *(prompts, module.k),
        )
    return nearest_neighbors_memory(battles, num_models=module.num_models)


KNN = register_family(
    Family(name="knn", module=NearestNeighbors, trains=False, remember=_remember, likelihood=BradleyTerry)
)
