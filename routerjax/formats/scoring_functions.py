"""The scoring function as StableHLO: symbolic batch and length, for cpu, cuda and tpu, weights as arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import flax.traverse_util
import jax
import jax.export
import jax.numpy as jnp

from routerjax.features import TextFunction
from routerjax.router import Router
from routerjax.typing import Array, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")

FlatWeights = dict[str, Array]


def flatten(tree: PyTree) -> FlatWeights:
    """Weights by path, ``params/classifier``: what a safetensors file holds."""
    return cast(FlatWeights, flax.traverse_util.flatten_dict(dict(tree), sep="/"))


def _unflatten(weights: Mapping[str, Array]) -> PyTree:
    return flax.traverse_util.unflatten_dict(dict(weights), sep="/")


def input_shapes(router: Router, text: TextFunction | None) -> dict[str, dict[str, dict[str, object]]]:
    """Inputs of the functions of a router, by function and name: their type and shape, with names of symbolic sizes."""
    shapes: dict[str, dict[str, dict[str, object]]] = {}
    if "embedding" in router.featurizer.example():
        width = router.featurizer.width
        shapes["from_embedding"] = {"embedding": {"dtype": "float32", "shape": ["batch", width]}}
    if text is not None:
        tokens = {"dtype": "int32", "shape": ["batch", "length"]}
        shapes["from_token_ids"] = {"token_ids": tokens, "attention_mask": tokens}
    return shapes


def export_from_embedding(router: Router) -> jax.export.Exported:
    """``(router weights, embedding float32 [batch, embed]) -> outputs``; see :meth:`Router.output_fn`."""
    compute = router.output_fn()

    def outputs(weights: FlatWeights, embedding: Array) -> dict[str, Array]:
        return compute(_unflatten(weights), {"embedding": embedding})

    (batch,) = jax.export.symbolic_shape("batch")
    embedding = jax.ShapeDtypeStruct((batch, router.featurizer.width), jnp.float32)
    return _export(outputs, _shapes(flatten(router.variables)), embedding)


def export_from_token_ids(router: Router, text: TextFunction) -> jax.export.Exported:
    """``(router weights, encoder weights, token_ids, attention_mask int32 [batch, length]) -> outputs``.

    Encoder and router are one function; a router that reads text itself has no other encoder, and no weights for it.
    The length may be any up to the tokenizer's ``max_length``.
    """
    compute = router.output_fn()

    def outputs(
        weights: FlatWeights, encoder_weights: FlatWeights, token_ids: Array, attention_mask: Array
    ) -> dict[str, Array]:
        tokens = {"token_ids": token_ids, "attention_mask": attention_mask}
        return compute(_unflatten(weights), text.apply(_unflatten(encoder_weights), tokens))

    # The position table is sliced to the length, which export accepts only where it knows the bound.
    shape = jax.export.symbolic_shape("batch, length", constraints=(f"length <= {text.tokenizer.max_length}",))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    return _export(outputs, _shapes(flatten(router.variables)), _shapes(flatten(text.variables)), tokens, tokens)


def _shapes(weights: FlatWeights) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights)


def _export(function: Callable[..., dict[str, Array]], *arguments: PyTree) -> jax.export.Exported:
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
