"""The featurizer that a configuration names."""

from __future__ import annotations

from pathlib import Path

from routerjax.config import FeatureConfig
from routerjax.errors import InputError
from routerjax.features.added_tokens import add_cls
from routerjax.features.endpoint import EndpointEncoder, is_endpoint
from routerjax.features.featurizer import Featurizer, read_featurizer
from routerjax.features.given import read_embeddings
from routerjax.features.sentence import load_encoder
from routerjax.features.tokens import load_tokens
from routerjax.pretrained import (
    NO_TEMPLATE,
    ChatTemplate,
    locate,
    parse_template,
    read_chat_template,
    transformer_folder,
)

CHAT = "chat"
"""The value of ``features.template`` that stands for the tokenizer's own chat template."""


def open_featurizer(config: FeatureConfig, *, root: Path = Path(), embeds: bool = True) -> Featurizer:
    """Open the featurizer of a configuration: the one place that tells the kinds apart.

    Args:
        config: names an encoder, an endpoint, a file of embeddings, or a registered featurizer.
        root: of the file of embeddings, if its path is relative.
        embeds: False for a router that reads tokens with an encoder of its own, whose pooling does not matter.

    Raises:
        InputError: what is named is not found or damaged, or settings contradict each other.
    """
    trains_encoder = config.train_encoder or not embeds
    if config.encoder_attributes and not trains_encoder:
        raise InputError("features.encoder_attributes are of an encoder that is trained: set features.train_encoder")
    if config.attributes and config.featurizer is None:
        raise InputError("features.attributes are of the featurizer that features.featurizer names: set it")
    if (config.template, config.instruction) != (None, None) and not trains_encoder:
        raise InputError("features.template and instruction are of an encoder that is trained: set train_encoder")
    if config.cls_token is not None and (embeds or config.template is None):
        raise InputError(
            "features.cls_token ends the template of a causal router with a linear head: set router.family=causal and "
            "features.template"
        )
    is_price_used = is_endpoint(config.encoder) and not trains_encoder and config.embeddings is None
    if config.dollars_per_million_tokens is not None and not (is_price_used and config.featurizer is None):
        raise InputError(
            "features.dollars_per_million_tokens is an endpoint's price, and no endpoint is asked: leave it out"
        )
    if config.featurizer is not None:
        if trains_encoder or config.embeddings is not None:
            raise InputError(
                f"features.featurizer={config.featurizer!r} takes the place of an encoder and of given embeddings: "
                "leave one of them out"
            )
        _refuse_choices(config, f": {config.featurizer} has attributes of its own")
        return read_featurizer({"kind": config.featurizer, **config.attributes}, {})
    if config.embeddings is not None:
        if trains_encoder:
            raise InputError(f"given embeddings ({config.embeddings}) have no encoder that could be trained")
        _refuse_choices(config, f": the embeddings are given ({config.embeddings})")
        return read_embeddings(root / config.embeddings).featurizer(config.embeddings)
    if trains_encoder:
        if config.pooling is not None and not embeds:
            raise InputError(
                f"features.pooling={config.pooling!r} is of embeddings, and this family has a head of its own on the "
                "hidden states: leave it out"
            )
        featurizer = load_tokens(
            config.encoder,
            max_length=config.max_length,
            truncation=config.truncation,
            chosen=config.encoder_attributes,
            embeds=embeds,
            pooling=config.pooling,
            layer=config.layer,
            template=_template(config),
        )
        return featurizer if config.cls_token is None else add_cls(featurizer, config.cls_token)
    if is_endpoint(config.encoder):
        _refuse_choices(config, f" by {config.encoder}, which is sent whole prompts")
        price = config.dollars_per_million_tokens
        return EndpointEncoder(config.encoder, dollars_per_million_tokens=price).featurizer
    return load_encoder(
        config.encoder,
        max_length=config.max_length,
        truncation=config.truncation,
        pooling=config.pooling,
        layer=config.layer,
    )


def _template(config: FeatureConfig) -> ChatTemplate:
    """The template of a configuration: written there, or the tokenizer's own."""
    if config.template != CHAT:
        if config.instruction is not None:
            raise InputError(f"features.instruction is a turn of a chat template: set features.template={CHAT}")
        return NO_TEMPLATE if config.template is None else parse_template(config.template)
    system = [] if config.instruction is None else [{"role": "system", "content": config.instruction}]
    folder = transformer_folder(locate(config.encoder))
    turns = [*system, {"role": "user", "content": "{prompt}"}]
    return read_chat_template(folder, turns, add_generation_prompt=config.cls_token is None)


def _refuse_choices(config: FeatureConfig, reason: str) -> None:
    for name in ("truncation", "pooling", "layer"):
        if getattr(config, name) is not None:
            raise InputError(f"features.{name}={getattr(config, name)!r} cannot be followed{reason}; leave it out")
