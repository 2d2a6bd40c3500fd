"""The BERT classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn

from routerjax.errors import InputError
from routerjax.families.family import Family, register_family
from routerjax.features import Featurizer, TokenFeaturizer
from routerjax.models import BertEncoder, BertRouter


def _build(family: Family, attributes: Mapping[str, Any], featurizer: Featurizer) -> nn.Module:
    encoder = cast(TokenFeaturizer, featurizer).encoder
    if not isinstance(encoder, BertEncoder):
        got = f"{encoder.model_type}: {featurizer.source}"
        raise InputError(f"{family.name} takes an encoder of the BERT family, got {got}; for a decoder, take causal")
    return family.module(encoder=encoder, **attributes)


BERT = register_family(Family(name="bert", module=BertRouter, reads_text=True, build=_build))
