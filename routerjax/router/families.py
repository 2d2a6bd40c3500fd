"""Router families: a module, and where its memory comes from if it learns by remembering."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import flax.linen as nn

from routerjax import losses, models
from routerjax.config import AttributeValue, coerce
from routerjax.errors import InputError, nearest
from routerjax.typing import PreferenceBatch, Variables


@dataclass(frozen=True)
class Family:
    """A router family.

    Attributes:
        module: linen, ``(num_models, **attributes)``, from a query to scores.
        memory: ``(module, battles) -> the module's memory collection`` of a family that trains nothing; None of one
            that learns parameters.
    """

    module: type[nn.Module]
    memory: Callable[[Any, PreferenceBatch], Variables] | None = None


def _similarity_weighted_memory(module: models.SimilarityWeighted, battles: PreferenceBatch) -> Variables:
    tier = models.battle_tiers(battles, num_models=module.num_models, num_tiers=module.num_tiers)
    return models.similarity_weighted_memory(battles, tier=tier)


FAMILIES: Mapping[str, Family] = {
    "mf": Family(models.MatrixFactorization),
    "knn": Family(
        models.NearestNeighbors,
        memory=lambda module, battles: models.nearest_neighbors_memory(battles, num_models=module.num_models),
    ),
    "sw": Family(models.SimilarityWeighted, memory=_similarity_weighted_memory),
}


POSITIVE = ("model_dim", "k", "gamma")
"""Attributes that make no sense as 0."""


def find_family(family: str) -> Family:
    """The entry of :data:`FAMILIES`.

    Raises:
        InputError: no such family; suggests the nearest.
    """
    if family not in FAMILIES:
        raise InputError(f"the family must be one of {', '.join(FAMILIES)}, got {family!r}{nearest(family, FAMILIES)}")
    return FAMILIES[family]


def remember(family: str, module: nn.Module, battles: PreferenceBatch) -> Variables:
    """The ``memory`` of a family that trains nothing.

    Raises:
        InputError: the family learns parameters, or there is nothing to remember in these battles.
    """
    memory = find_family(family).memory
    if memory is None:
        raise InputError(f"{family} learns parameters: train it")
    return memory(module, battles)


def make_module(
    family: str, *, num_models: int, attributes: Mapping[str, AttributeValue], loss: str = "bradley_terry"
) -> nn.Module:
    """The linen module of a family, with the columns that its loss asks for.

    Raises:
        InputError: no such family, loss, or attribute of the module; a value of another type or out of range; a loss
            with ties for a family that trains nothing.
    """
    found = find_family(family)
    fields = {f.name for f in dataclasses.fields(found.module)} - {"parent", "name", "num_models"}
    for name in attributes:
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise InputError(f"{family} has no attribute {name!r}{nearest(name, fields)}; it has {known}")
    types = get_type_hints(found.module)
    checked = {name: coerce(value, types[name], f"{family}.{name}") for name, value in attributes.items()}
    for name, value in checked.items():
        if isinstance(value, int | float) and (value < 0 or (value == 0 and name in POSITIVE)):
            raise InputError(
                f"{family}.{name} must be {'positive' if name in POSITIVE else 'at least 0'}, got {value!r}"
            )
    tie = losses.outcome_model(loss).tie
    if found.memory is not None and tie != "none":
        raise InputError(f"{family} trains nothing, so it takes no loss but bradley_terry; got {loss!r}")
    if tie == "labels":
        if num_models != 2:
            raise InputError(f"the loss {loss} is of battles between two models; these battles have {num_models}")
        return found.module(num_models=3, **checked)
    module = found.module(num_models=num_models + (tie == "column"), **checked)
    return models.WithTie(module) if tie == "parameter" else module
