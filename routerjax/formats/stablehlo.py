"""Bundles whose functions are StableHLO: they run wherever jax does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.features import TextFunction
from routerjax.formats.bundle import BundleFormat, Contents
from routerjax.formats.scoring_functions import (
    PLATFORMS,
    export_from_embedding,
    export_from_token_ids,
    flatten,
    input_shapes,
)
from routerjax.pretrained import tensor_bytes
from routerjax.router import Router

TOLERANCE = {"from_embedding": 1e-6, "from_token_ids": 1e-5, "from_text": 1e-5}
"""Largest differences between the bundle and the router that are accepted, of what is at most 1."""
BFLOAT16_TOLERANCE = 2e-2
"""Their least value for a router in bfloat16, whose numbers have 8 bits: batches of another size round otherwise."""


@dataclass(frozen=True)
class StableHlo(BundleFormat):
    """A bundle that runs wherever jax does, without routerjax.

    The scoring function from embeddings and, for routers of an encoder, from token ids (encoder and router as one
    function; of a router that reads text itself this one alone), as StableHLO for cpu, cuda and tpu with symbolic batch
    and length; the weights are arguments, in files of their own.
    """

    name = "stablehlo"
    requirements = ("jax>=0.10", "numpy>=2.0", "safetensors>=0.5", "flatbuffers>=25.2", "tokenizers>=0.22")

    def contents(self, router: Router, text: TextFunction | None, golden: Mapping[str, np.ndarray]) -> Contents:
        """Export the functions for each input that there is."""
        files = {"router.safetensors": tensor_bytes(flatten(router.variables))}
        functions: dict[str, Mapping[str, object]] = {}
        shapes = input_shapes(router, text)
        if "from_embedding" in shapes:
            name = "from_embedding.stablehlo"
            files[name] = bytes(export_from_embedding(router).serialize())
            weights = ["router.safetensors"]
            functions["from_embedding"] = {"file": name, "weights": weights, "inputs": shapes["from_embedding"]}
        if text is not None:
            name, encoder = "from_token_ids.stablehlo", "encoder.safetensors" if text.variables else None
            files[name] = bytes(export_from_token_ids(router, text).serialize())
            if encoder:
                files[encoder] = tensor_bytes(flatten(text.variables))
            weights = ["router.safetensors", encoder]
            functions["from_token_ids"] = {"file": name, "weights": weights, "inputs": shapes["from_token_ids"]}
        is_bfloat16 = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(router.variables))
        least = BFLOAT16_TOLERANCE if is_bfloat16 else 0.0
        used = {*functions, *(["from_text"] if text is not None else [])}
        return Contents(
            files,
            functions,
            tolerance={name: max(value, least) for name, value in TOLERANCE.items() if name in used},
            needs={"jax": jax.__version__},
            settings={"platforms": list(PLATFORMS)},
        )
