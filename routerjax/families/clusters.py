"""Clusters of prompts, by k-means on their embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.families.family import Family, register_family
from routerjax.likelihoods import BRADLEY_TERRY, BradleyTerry
from routerjax.models import Clusters, nearest_centroid, nearest_neighbors_memory
from routerjax.typing import Array, PreferenceBatch, Variables

# Numbers of clusters that are tried where none is given.
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HELD_OUT = 0.2


def _remember(module: Clusters, battles: PreferenceBatch, models: Sequence[str] | None) -> Variables:
    del models
    prompts = battles.query["embedding"].shape[0]
    everything = np.arange(prompts)
    if module.num_clusters:
        return _memory(module, _per_prompt(module, battles), everything, min(module.num_clusters, prompts))
    order = np.random.default_rng(module.seed).permutation(prompts)
    held_out, rows = np.split(order, [int(HELD_OUT * prompts)])
    is_held_out = np.isin(np.asarray(battles.query_index), held_out)
    known = _per_prompt(module, battles._replace(weight=jnp.where(is_held_out, 0.0, battles.weight)))
    rest = battles._replace(weight=jnp.where(is_held_out, battles.weight, 0.0))
    # At least two prompts a cluster: with one, there is nothing that the prompts of a cluster share.
    tried = [number for number in CANDIDATES if number <= len(rows) // 2] or [1]
    loss = [float(_loss(module, _memory(module, known, rows, number), rest)) for number in tried]
    return _memory(module, _per_prompt(module, battles), everything, tried[int(np.argmin(loss))])


def _per_prompt(module: Clusters, battles: PreferenceBatch) -> Variables:
    """Embedding, identity, and sums of the labels and the battles, of each prompt."""
    return nearest_neighbors_memory(battles, num_models=module.num_models)


def _memory(module: Clusters, per_prompt: Variables, rows: np.ndarray, num_clusters: int) -> Variables:
    """Memory of battles, whose clusters are those of the prompts at ``rows``."""
    from sklearn.cluster import KMeans  # a second of imports that only making clusters needs

    means = KMeans(num_clusters, random_state=module.seed).fit(np.asarray(per_prompt["embedding"])[rows])
    centroid = jnp.asarray(means.cluster_centers_, jnp.float32)
    cluster = nearest_centroid(per_prompt["embedding"], centroid)
    sums = {
        f"cluster_{name}": jax.ops.segment_sum(per_prompt[name], cluster, num_segments=num_clusters)
        for name in ("label_sum", "battle_count")
    }
    return {**{name: leaf for name, leaf in per_prompt.items() if name != "embedding"}, "centroid": centroid, **sums}


def _loss(module: Clusters, memory: Variables, battles: PreferenceBatch) -> Array:
    """Weighted sum of the loss of battles on prompts that are not in the memory."""
    scores = jnp.asarray(module.apply({"memory": memory}, {"embedding": battles.query["embedding"]}))
    return jnp.sum(battles.weight * BRADLEY_TERRY.loss({}, scores, battles))


CLUSTERS = register_family(
    Family(name="clusters", module=Clusters, trains=False, remember=_remember, likelihood=BradleyTerry)
)
