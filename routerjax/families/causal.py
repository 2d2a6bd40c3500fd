"""The causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn

from routerjax.errors import InputError
from routerjax.families.family import Family, register_family
from routerjax.features import Featurizer, TokenFeaturizer
from routerjax.models import CausalRouter, Decoder


def _build(family: Family, attributes: Mapping[str, Any], featurizer: Featurizer) -> nn.Module:
    encoder = cast(TokenFeaturizer, featurizer).encoder
    if not isinstance(encoder, Decoder):
        raise InputError(
            f"{family.name} takes a decoder, such as of Llama, got {encoder.model_type}: {featurizer.source}"
        )
    module = family.module(encoder=encoder, **attributes)
    if module.head != "linear" and not module.use_bias:
        raise InputError(f"{family.name}.use_bias is of a linear head, got head={module.head!r}: leave it out")
    if module.head != "linear" and 0 < encoder.config.added_tokens < module.num_models:
        raise InputError(
            f"features.cls_token is read by a linear head, got {family.name}.head={module.head!r}: leave one out"
        )
    return module


CAUSAL = register_family(Family(name="causal", module=CausalRouter, reads_text=True, build=_build))
