"""Router families: a module, with the readout that goes with the loss it is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn

from routerjax import losses, models
from routerjax.config import AttributeValue
from routerjax.errors import InputError, nearest
from routerjax.typing import Readout


@dataclass(frozen=True)
class Family:
    """A router family: the module, and the readout from its scores to win probability that goes with its loss."""

    module: type[nn.Module]
    readout: Readout = losses.bradley_terry_readout


FAMILIES: Mapping[str, Family] = {
    "mf": Family(models.MatrixFactorization),
    "knn": Family(models.NearestNeighbors),
}


def make_module(family: str, *, num_models: int, attributes: Mapping[str, AttributeValue]) -> nn.Module:
    """The linen module of a family.

    Raises:
        InputError: no such family, or no such attribute of its module.
    """
    if family not in FAMILIES:
        raise InputError(f"the family must be one of {', '.join(FAMILIES)}, got {family!r}{nearest(family, FAMILIES)}")
    module_class = FAMILIES[family].module
    fields = {f.name for f in dataclasses.fields(module_class)} - {"parent", "name", "num_models"}
    for name in attributes:
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise InputError(f"{family} has no attribute {name!r}{nearest(name, fields)}; it has {known}")
    return module_class(num_models=num_models, **attributes)
