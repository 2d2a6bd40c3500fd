"""Nearest neighbours: the control that every learned router is compared with."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.config import Count, Positive
from routerjax.errors import InputError
from routerjax.models.layers import remembered, unit_length
from routerjax.typing import PreferenceBatch, Query, Variables

# Cosine similarity lies in [-1, 1]: a query's own entry, marked with this, is never among its neighbours.
EXCLUDED = -2.0


class NearestNeighbors(nn.Module):
    """The mean label of each model over the k nearest training prompts.

    ``score_m = log((sum_m + smoothing * prior_m) / (count_m + smoothing))``, where the sum and the count run over the
    battles of m on the k prompts of highest cosine similarity and prior_m is m's mean label over all battles. With the
    battles of one pair, one a prompt, ``sigmoid(score_a - score_b)`` is, as smoothing goes to 0, exactly the mean label
    of the k nearest prompts.

    ``memory``, built by :func:`nearest_neighbors_memory`: ``embedding [prompts, embed]`` (unit length), ``prompt_id
    [prompts, 2]``, ``label_sum`` and ``battle_count`` ``[prompts, models]``, ``prior [models]``.

    Attributes:
        num_models: columns of the scores.
        k: neighbours; at most the number of prompts in memory.
        smoothing: battles that the prior counts for, positive: without it, neighbours without a battle of a model,
            or without a win, have no finite score.

    Raises:
        InputError: a smoothing that is not positive and finite.
    """

    num_models: int
    k: Count = 50
    smoothing: Positive = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.smoothing < math.inf:
            raise InputError(f"smoothing of nearest neighbours must be positive and finite, got {self.smoothing}")
        super().__post_init__()

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch models"]:
        """Score by ``query["embedding"]``; a query that brings its ``prompt_id`` is not its own neighbour.

        Needs space for ``batch x prompts`` similarities.
        """
        embedding, own_id, prior = (remembered(self, name) for name in ("embedding", "prompt_id", "prior"))
        label_sum, battle_count = remembered(self, "label_sum"), remembered(self, "battle_count")
        k = min(self.k, embedding.shape[0])

        similarity = unit_length(query["embedding"]) @ embedding.T
        if "prompt_id" in query:
            is_own = jnp.all(own_id[None, :, :] == query["prompt_id"][:, None, :], axis=-1)
            similarity = jnp.where(is_own, EXCLUDED, similarity)
        nearest_similarity, nearest = jax.lax.top_k(similarity, k)
        used = (nearest_similarity > EXCLUDED)[:, :, None]
        labels = jnp.sum(label_sum[nearest] * used, axis=1)
        battles = jnp.sum(battle_count[nearest] * used, axis=1)
        prior_labels = self.smoothing * prior[None, :]
        return jnp.log((labels + prior_labels) / (battles + self.smoothing))


def nearest_neighbors_memory(batch: PreferenceBatch, *, num_models: int) -> Variables:
    """The ``memory`` of :class:`NearestNeighbors` from battles.

    A battle gives its label to model_a and one minus its label to model_b. The prior of a model is its mean label,
    pulled by one battle's weight towards one half, so that it is never 0 or 1.

    Args:
        batch: battles whose query has ``embedding`` and ``prompt_id``.
        num_models: columns.
    """
    embedding = batch.query["embedding"]
    zeros = jnp.zeros((embedding.shape[0], num_models))
    won_a, won_b = batch.weight * batch.label, batch.weight * (1.0 - batch.label)
    label_sum = zeros.at[batch.query_index, batch.model_a].add(won_a).at[batch.query_index, batch.model_b].add(won_b)
    battle_count = (
        zeros.at[batch.query_index, batch.model_a]
        .add(batch.weight)
        .at[batch.query_index, batch.model_b]
        .add(batch.weight)
    )
    return {
        "embedding": unit_length(embedding),
        "prompt_id": batch.query["prompt_id"],
        "label_sum": label_sum,
        "battle_count": battle_count,
        "prior": (jnp.sum(label_sum, axis=0) + 0.5) / (jnp.sum(battle_count, axis=0) + 1.0),
    }
