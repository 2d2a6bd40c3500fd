"""Low-rank adapters as part of the weights that they are added to."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.traverse_util
import jax.numpy as jnp

from routerjax.models.decoder_config import DecoderConfig
from routerjax.models.linear import FROZEN
from routerjax.typing import Variables


def merge_adapters(variables: Variables, config: DecoderConfig) -> tuple[Variables, DecoderConfig]:
    """Add the adapters of a decoder to its weights; pure.

    ``W + scale * A B`` is computed in float32 and stored in the type of ``W``.

    Args:
        variables: of a module that has the decoder at any depth; without adapters they are returned as they are.
        config: of the decoder.

    Returns:
        Variables whose ``params`` hold all of the decoder, and its configuration without adapters.
    """
    if not config.lora_rank:
        return variables, config
    frozen = flax.traverse_util.flatten_dict(dict(variables[FROZEN]))
    params: dict[tuple[str, ...], Any] = dict(flax.traverse_util.flatten_dict(dict(variables["params"])))
    for path, leaf in frozen.items():
        if path[-1] == "kernel" and (*path[:-1], "lora_a") in params:
            low, high = (jnp.asarray(params.pop((*path[:-1], name))) for name in ("lora_a", "lora_b"))
            change = jnp.matmul(low, high, precision="highest")
            leaf = (jnp.asarray(leaf, jnp.float32) + config.lora_scale * change).astype(config.param_dtype)
        params[path] = leaf
    others = {name: leaves for name, leaves in variables.items() if name != FROZEN}
    return {**others, "params": flax.traverse_util.unflatten_dict(params)}, dataclasses.replace(config, lora_rank=0)
