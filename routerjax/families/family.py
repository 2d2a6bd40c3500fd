"""Router family: a linen module, where its variables start, and what of it is stored rather than trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from routerjax.config import AttributeValue
from routerjax.errors import InputError, choose, nearest
from routerjax.families.parameter_groups import layer_depths
from routerjax.families.pretrained_params import pretrained_variables
from routerjax.features import Featurizer, TokenFeaturizer
from routerjax.likelihoods import Likelihood
from routerjax.models import EmbedThen
from routerjax.pretrained import locate
from routerjax.registry import Registry
from routerjax.scoring import mode, needs_named
from routerjax.typing import Array, PreferenceBatch, PyTree, Variables
from routerjax.validation import coerce, field_types, typed

NO_ATTRIBUTES = {"parent", "name", "num_models", "encoder"}
"""Fields of modules that no configuration decides: Flax's own, and what data and files say."""


def build_on_embeddings(family: Family, attributes: Mapping[str, Any], featurizer: Featurizer) -> nn.Module:
    """Build a module that takes embeddings; where the featurizer gives tokens, on top of the encoder that it names."""
    module = family.module(**attributes)
    return EmbedThen(featurizer.embedding, module) if isinstance(featurizer, TokenFeaturizer) else module


def initial_variables(module: nn.Module, featurizer: Featurizer, key: Array) -> Variables:
    """Initialise all collections; the encoder of a module that reads tokens starts as its files have it."""
    example = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in featurizer.example().items()}

    def initialise() -> Variables:
        with needs_named(module, {}, {"params": key}):
            return nn.meta.unbox(module.init(key, example, **mode(module, deterministic=True)))

    if isinstance(featurizer, TokenFeaturizer):
        return pretrained_variables(module, locate(featurizer.source), key)
    return initialise()


def refuse_to_remember(module: nn.Module, battles: PreferenceBatch, models: Sequence[str] | None) -> Variables:
    """Raise InputError: the family learns parameters."""
    del battles, models
    raise InputError(f"{type(module).__name__} learns parameters: train it")


def _accept_pair(variables: Variables, models: Sequence[str], strong: str, weak: str) -> None:
    """Accept any pair of models."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A router family.

    Attributes:
        name: under which it is registered, and routers of it are stored.
        module: linen, ``(num_models, **attributes)``, from a query to scores.
        reads_text: if the module holds an ``encoder`` of tokens. Another takes embeddings, which may come from an
            encoder that is trained with it.
        build: ``(family, attributes with num_models, featurizer) -> module``.
        start: ``(module, featurizer, key) -> variables`` that training starts from, in all their collections.
        parameter_groups: ``params -> depth of each``, by which they learn at rates of their own, see
            :class:`routerjax.training.AdamW`; by default the layers of what is called ``encoder``.
        trains: False for a family that learns no parameters, but remembers battles.
        remember: ``(module, battles, names of the models) -> memory`` of such a family.
        likelihood: the only one that the scores can be of; any by default.
        require_pair: ``(variables, models, strong, weak)``; raises InputError for a pair that has no win probability.
    """

    name: str
    module: type[nn.Module]
    reads_text: bool = False
    build: Callable[[Family, Mapping[str, Any], Featurizer], nn.Module] = build_on_embeddings
    start: Callable[[nn.Module, Featurizer, Array], Variables] = initial_variables
    parameter_groups: Callable[[PyTree], PyTree] = layer_depths
    trains: bool = True
    remember: Callable[[Any, PreferenceBatch, Sequence[str] | None], Variables] = refuse_to_remember
    likelihood: type[Likelihood] = Likelihood
    require_pair: Callable[[Variables, Sequence[str], str, str], None] = _accept_pair

    def typed_attributes(self, attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
        """Attributes in the types of the module; text, as a command line gives it, is read by its type.

        Raises:
            InputError: no such attribute, or a value of another type.
        """
        return typed(attributes, self._attribute_types(attributes), self.name)

    def make_module(
        self, *, num_outputs: int, attributes: Mapping[str, AttributeValue], featurizer: Featurizer
    ) -> nn.Module:
        """Make the module.

        Args:
            num_outputs: scores of a prompt, see :meth:`routerjax.likelihoods.Likelihood.output_names`.
            attributes: of the module, other than the number of outputs.
            featurizer: of its queries.

        Raises:
            InputError: no such attribute, a value of another type or out of range, or a featurizer that is not for
                this family.
        """
        gives_tokens = isinstance(featurizer, TokenFeaturizer)
        if gives_tokens and not self.trains:
            raise InputError(
                f"{self.name} trains nothing, so it cannot train an encoder: set features.train_encoder=False"
            )
        if self.reads_text and not gives_tokens:
            raise InputError(f"{self.name} reads text with an encoder of its own, and none was given")
        types = self._attribute_types(attributes)
        checked = {name: coerce(value, types[name], f"{self.name}.{name}") for name, value in attributes.items()}
        return self.build(self, {"num_models": num_outputs, **checked}, featurizer)

    def require_likelihood(self, likelihood: Likelihood) -> None:
        """Raise InputError unless the scores can be of this likelihood."""
        if not isinstance(likelihood, self.likelihood):
            raise InputError(
                f"{self.name} trains nothing, so it takes no loss but {self.likelihood.name}; got {likelihood.name!r}"
            )

    def attributes_of(self, module: nn.Module) -> dict[str, AttributeValue]:
        """Attributes of a module of this family, as :meth:`make_module` takes them."""
        head = head_of(module)
        names = [field.name for field in dataclasses.fields(self.module) if field.name not in NO_ATTRIBUTES]
        return {name: getattr(head, name) for name in names}

    def _attribute_types(self, names: Iterable[str]) -> Mapping[str, object]:
        """Types of the attributes, among which are these names."""
        known = {field.name for field in dataclasses.fields(self.module)} - NO_ATTRIBUTES
        for name in names:
            if name not in known:
                listed, close = ", ".join(sorted(known)), nearest(name, known)
                raise InputError(f"{self.name} has no attribute {name!r}{close}; it has {listed}")
        return field_types(self.module)


FAMILIES: Registry[Family] = Registry("routerjax.families")
"""Families by name; a package adds its own by an entry point ``routerjax.families``."""


register_family = FAMILIES.register
"""Make a family known by its name, so that a configuration can train it too, see
:meth:`routerjax.registry.Registry.register`."""


def find_family(name: str) -> Family:
    """Look up a family by its name.

    Raises:
        InputError: no such family; suggests the nearest.
    """
    return choose(name, FAMILIES, "the family")


def family_of(module: nn.Module) -> Family | None:
    """The family of a module; None where no family that is registered has its class."""
    # One by one: a package is imported only if the family is none of those before it.
    known = (FAMILIES[name] for name in FAMILIES)
    return next((family for family in known if type(head_of(module)) is family.module), None)


def head_of(module: nn.Module) -> nn.Module:
    """The module without the encoder of text that it may be put on."""
    return module.head if isinstance(module, EmbedThen) else module
