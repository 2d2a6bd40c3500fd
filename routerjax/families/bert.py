"""The BERT classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn

from routerjax.families.family import Family, register_family
from routerjax.features import Featurizer, TokenFeaturizer
from routerjax.models import BertRouter


def _build(family: Family, attributes: Mapping[str, Any], featurizer: Featurizer) -> nn.Module:
    return family.module(encoder=cast(TokenFeaturizer, featurizer).encoder, **attributes)


BERT = register_family(Family(name="bert", module=BertRouter, reads_text=True, build=_build))
