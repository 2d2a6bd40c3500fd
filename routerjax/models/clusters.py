"""Clusters of prompts: the mean label of the cluster, a control that learned routers find hard to beat."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.config import Positive, Seed, Whole
from routerjax.models.layers import remembered, unit_length
from routerjax.typing import Query


class Clusters(nn.Module):
    """The mean label of each model over the training prompts of the nearest cluster.

    ``score_m = log((sum_m + smoothing * prior_m) / (count_m + smoothing))``, where the sum and the count run over the
    battles of m on the prompts of the cluster, and prior_m is m's mean label over all battles.

    ``memory``, built by the family ``clusters``: ``centroid [clusters, embed]``, ``cluster_label_sum`` and
    ``cluster_battle_count`` ``[clusters, models]``, ``prior [models]``; and of each prompt ``prompt_id [prompts, 2]``,
    ``label_sum`` and ``battle_count`` ``[prompts, models]``, by which a query leaves its own battles out.

    Attributes:
        num_models: columns of the scores.
        num_clusters: of the training prompts; 0 chooses a power of two by the loss on a fifth of the prompts.
        smoothing: battles that the prior counts for.
        seed: of k-means and of the choice.
    """

    num_models: int
    num_clusters: Whole = 0
    smoothing: Positive = 1.0
    seed: Seed = 0

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch models"]:
        """Score by ``query["embedding"]``; a query that brings its ``prompt_id`` does not see its own battles."""
        cluster = nearest_centroid(query["embedding"], remembered(self, "centroid"))
        labels = remembered(self, "cluster_label_sum")[cluster]
        battles = remembered(self, "cluster_battle_count")[cluster]
        if "prompt_id" in query:
            is_own = jnp.all(remembered(self, "prompt_id")[None, :, :] == query["prompt_id"][:, None, :], axis=-1)
            labels = labels - is_own.astype(labels.dtype) @ remembered(self, "label_sum")
            battles = battles - is_own.astype(labels.dtype) @ remembered(self, "battle_count")
        prior_labels = self.smoothing * remembered(self, "prior")[None, :]
        # Sums of float32 that are taken off again leave a remainder: a label sum is never below 0.
        return jnp.log((jnp.maximum(labels, 0.0) + prior_labels) / (jnp.maximum(battles, 0.0) + self.smoothing))


def nearest_centroid(embedding: Float[Array, "batch embed"], centroid: Float[Array, "clusters embed"]) -> Array:
    """Index of the centroid that is nearest to each embedding, scaled to unit length: int32 ``[batch]``."""
    return jnp.argmin(jnp.sum(centroid**2, axis=-1)[None, :] - 2.0 * unit_length(embedding) @ centroid.T, axis=-1)
