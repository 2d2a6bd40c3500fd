"""Router families: a module, and where its memory comes from if it learns by remembering."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from routerjax.config import AttributeValue
from routerjax.errors import InputError, choose, nearest
from routerjax.likelihoods import BRADLEY_TERRY, BradleyTerry, Likelihood
from routerjax.models import (
    BertRouter,
    EmbedThen,
    MatrixFactorization,
    NearestNeighbors,
    SimilarityWeighted,
    battle_tiers,
    nearest_neighbors_memory,
    similarity_weighted_memory,
)
from routerjax.router.reader import TextReader
from routerjax.typing import PreferenceBatch, Variables
from routerjax.validation import coerce, field_types, typed


@dataclass(frozen=True)
class Family:
    """A router family.

    Attributes:
        module: linen, ``(num_models, **attributes)``, from a query to scores.
        memory: ``(module, battles, names of the models) -> the module's memory collection`` of a family that trains
            nothing; None of one that learns parameters.
        reads_text: whether the module holds an ``encoder`` of tokens. Another takes embeddings, which may come from an
            encoder that is trained with it.
    """

    module: type[nn.Module]
    memory: Callable[[Any, PreferenceBatch, Sequence[str] | None], Variables] | None = None
    reads_text: bool = False


def _similarity_weighted_memory(
    module: SimilarityWeighted, battles: PreferenceBatch, names: Sequence[str] | None
) -> Variables:
    tier = battle_tiers(battles, num_models=module.num_models, num_tiers=module.num_tiers, names=names)
    return similarity_weighted_memory(battles, tier=tier)


FAMILIES: Mapping[str, Family] = {
    "mf": Family(MatrixFactorization),
    "knn": Family(
        NearestNeighbors,
        memory=lambda module, battles, _: nearest_neighbors_memory(battles, num_models=module.num_models),
    ),
    "sw": Family(SimilarityWeighted, memory=_similarity_weighted_memory),
    "bert": Family(BertRouter, reads_text=True),
}


NO_ATTRIBUTES = {"parent", "name", "num_models", "encoder", "memory_axis"}
"""Fields of modules that no configuration decides: Flax's own, what data and files say, a caller's mapped axis."""


def find_family(family: str) -> Family:
    """Look up a family in :data:`FAMILIES`.

    Raises:
        InputError: no such family; suggests the nearest.
    """
    return choose(family, FAMILIES, "the family")


def remember(
    family: str, module: nn.Module, battles: PreferenceBatch, *, names: Sequence[str] | None = None
) -> Variables:
    """Build the ``memory`` of a family that trains nothing.

    Args:
        family: a name in :data:`FAMILIES`.
        module: of that family.
        battles: to remember.
        names: of the models, for errors.

    Raises:
        InputError: the family learns parameters, or there is nothing to remember in these battles.
    """
    memory = find_family(family).memory
    if memory is None:
        raise InputError(f"{family} learns parameters: train it")
    return memory(module, battles, names)


def typed_attributes(family: str, attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Attributes in the types of the family's module; text, as a command line gives it, is read by its type.

    Raises:
        InputError: no such family or attribute, or a value of another type.

    Example:
        >>> typed_attributes("knn", {"k": "5", "smoothing": 1})
        {'k': 5, 'smoothing': 1.0}
    """
    return typed(attributes, _attribute_types(family, attributes), family)


def _attribute_types(family: str, names: Iterable[str]) -> Mapping[str, object]:
    """Types of a family's attributes, among which are these names."""
    module = find_family(family).module
    known = {f.name for f in dataclasses.fields(module)} - NO_ATTRIBUTES
    for name in names:
        if name not in known:
            listed, close = ", ".join(sorted(known)), nearest(name, known)
            raise InputError(f"{family} has no attribute {name!r}{close}; it has {listed}")
    return field_types(module)


def make_module(
    family: str,
    *,
    models: Sequence[str],
    attributes: Mapping[str, AttributeValue],
    likelihood: Likelihood = BRADLEY_TERRY,
    reader: TextReader | None = None,
) -> nn.Module:
    """Make the linen module of a family, with the outputs that its likelihood asks for.

    Args:
        family: a name in :data:`FAMILIES`.
        models: names of those that are scored.
        attributes: of the family's module.
        likelihood: of the battles that it is trained on.
        reader: what reads text as a part of the router; a family of embeddings is put on top of it.

    Raises:
        InputError: no such family, or attribute of the module; a value of another type or out of range; a likelihood
            but Bradley-Terry's for a family that trains nothing, or an encoder to train; a family that reads text
            without reader.
    """
    found = find_family(family)
    if found.memory is not None and reader is not None:
        raise InputError(f"{family} trains nothing, so it cannot train an encoder: set features.train_encoder=False")
    if found.reads_text and reader is None:
        raise InputError(f"{family} reads text with an encoder of its own, and none was given")
    types = _attribute_types(family, attributes)
    checked = {name: coerce(value, types[name], f"{family}.{name}") for name, value in attributes.items()}
    if reader is not None and found.reads_text:
        checked["encoder"] = reader.encoder
    if found.memory is not None and not isinstance(likelihood, BradleyTerry):
        raise InputError(f"{family} trains nothing, so it takes no loss but bradley_terry; got {likelihood.name!r}")
    module = found.module(num_models=len(likelihood.output_names(tuple(models))), **checked)
    return module if reader is None or found.reads_text else EmbedThen(reader.embedding, module)
