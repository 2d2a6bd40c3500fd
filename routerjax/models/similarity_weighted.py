"""Similarity-weighted ranking: a Bradley-Terry fit for each query, in which battles on similar prompts weigh more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from routerjax import bradley_terry
from routerjax.config import Positive, Whole
from routerjax.errors import InputError
from routerjax.models.layers import remembered, unit_length
from routerjax.typing import PreferenceBatch, Query, Variables

# Queries weighed against the whole memory at a time: 64 x 100,000 similarities are 26 MB.
CHUNK_QUERIES = 64
# A query whose largest similarity is not above this is like no prompt: there is no maximum to normalise by.
SMALLEST_SIMILARITY = 1e-3
# Below all cosines: a query's own battles, which it must not see.
EXCLUDED = -2.0


class SimilarityWeighted(nn.Module):
    """Ratings fitted to the remembered battles, each weighted by the similarity of its prompt to the query.

    ``ratings(q) = argmin_r sum_battles weight * gamma ** (1 + S(q, q')) * BCE(label, sigmoid(r_a - r_b))``

    S is the cosine of the two embeddings, over a maximum by which it is normalised. A model's score is its tier's
    rating, so two models of one tier score the same, and battles within a tier count nothing. A tie is half a win for
    each side. Nothing is trained: the ``memory``, built by :func:`similarity_weighted_memory`, is the router.

    The fit depends on the battles only through the weighted wins between tiers: a matmul (query x memory), an
    exponential, a sum into cells, and a small Newton solve.

    Attributes:
        num_models: columns of the scores.
        gamma: base of the weights; 1 weighs all battles alike.
        normalize: ``query`` divides by the largest similarity of the QUERY to any remembered prompt, as RouteLLM's code
            does; ``train`` by the largest of the REMEMBERED prompt to any remembered prompt, as the paper prints it.
            The latter is that of the prompt with itself, 1, so S is the plain cosine.
        num_tiers: tiers that the models are put into, at most as many as models; 0 rates every model by itself.

    Deviations: RouteLLM's code lets a battle within a tier pull that tier down by log 10; here it counts nothing. It
    divides by a largest similarity of any size and sign; here a query at right angles to all prompts, or beyond, is
    weighed by plain cosines, so that it gets about the overall ranking.

    Reference:
        RouteLLM (arXiv 2406.18665), section 4.1, whose last sigmoid is printed with the sign flipped;
        ``routellm/routers/similarity_weighted`` in its code.
    """

    num_models: int
    gamma: Positive = 10.0
    normalize: Literal["query", "train"] = "query"
    num_tiers: Whole = 10

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch models"]:
        """Score by ``query["embedding"]``; a query that brings its ``prompt_id`` does not see its own battles."""
        embedding, own_id, tier = (remembered(self, name) for name in ("embedding", "prompt_id", "tier"))
        cell_prompt, cell, cell_wins = (remembered(self, name) for name in ("cell_prompt", "cell", "cell_wins"))
        pairs = remembered(self, "pairs")

        def ratings(part: Query) -> Float[Array, "part tiers"]:
            # [prompts, part]: queries last, so that a cell's sum adds whole rows.
            similarity = embedding @ unit_length(part["embedding"]).T
            if "prompt_id" in part:
                is_own = jnp.all(own_id[:, None, :] == part["prompt_id"][None, :, :], axis=-1)
                similarity = jnp.where(is_own, EXCLUDED, similarity)
            else:
                is_own = jnp.zeros_like(similarity, bool)
            if self.normalize == "query":
                largest = jnp.max(similarity, axis=0)
                similarity = similarity / jnp.where(largest > SMALLEST_SIMILARITY, largest, 1.0)[None, :]
            # gamma ** (1 + similarity) over its largest value: the fit does not depend on the scale of the weights, and
            # neither a large gamma nor a query unlike everything leaves float32.
            exponent = jnp.where(is_own, -jnp.inf, jnp.log(self.gamma) * similarity)
            highest = jax.lax.stop_gradient(jnp.max(exponent, axis=0))
            weight = jnp.exp(exponent - jnp.where(jnp.isfinite(highest), highest, 0.0)[None, :])
            # Every cell is one ordered pair of tiers, and the entries lie in the order of the cells.
            entries = cell_wins[:, None] * weight[cell_prompt]
            wins = jax.ops.segment_sum(entries, cell, num_segments=pairs.shape[0], indices_are_sorted=True)
            num_tiers = min(self.num_tiers, self.num_models) or self.num_models
            matrix = jnp.zeros((num_tiers, num_tiers, wins.shape[1])).at[pairs[:, 0], pairs[:, 1]].add(wins)
            return jax.vmap(bradley_terry.fit, in_axes=2)(matrix)

        batch = query["embedding"].shape[0]
        # A symbolic batch, of an exported function, is weighed as a whole: its caller bounds it.
        if not isinstance(batch, int) or batch <= CHUNK_QUERIES:
            return ratings(query)[:, tier]
        num_chunks = -(-batch // CHUNK_QUERIES)

        def in_chunks(leaf: Array) -> Array:
            padding = [(0, num_chunks * CHUNK_QUERIES - batch)] + [(0, 0)] * (leaf.ndim - 1)
            return jnp.pad(leaf, padding).reshape(num_chunks, CHUNK_QUERIES, *leaf.shape[1:])

        chunks = jax.lax.map(ratings, jax.tree.map(in_chunks, dict(query)))
        return chunks.reshape(num_chunks * CHUNK_QUERIES, -1)[:batch][:, tier]


def similarity_weighted_memory(battles: PreferenceBatch, *, tier: Int[np.ndarray, "models"]) -> Variables:
    """The ``memory`` of :class:`SimilarityWeighted` from battles.

    Prompts without a battle between tiers are left out. ``embedding [prompts, embed]`` is of unit length; ``pairs
    [cells, 2]`` are the ordered pairs of tiers that met (winner, loser); the wins of a prompt in a cell are an entry:
    ``cell_prompt``, ``cell`` (sorted) and ``cell_wins [entries]``; ``tier [models]``; ``prompt_id [prompts, 2]``.

    Args:
        battles: whose query has ``embedding`` and ``prompt_id``.
        tier: of each model, 0 first; see :func:`battle_tiers`. ``np.arange(num_models)`` rates every model by itself.

    Raises:
        InputError: no battle between two tiers.
    """
    tier = np.asarray(tier, np.int32)
    tier_a, tier_b = tier[np.asarray(battles.model_a)], tier[np.asarray(battles.model_b)]
    weight, label = np.asarray(battles.weight, np.float64), np.asarray(battles.label, np.float64)
    prompt, between = np.asarray(battles.query_index), tier_a != tier_b
    winner = np.concatenate([tier_a[between], tier_b[between]])
    loser = np.concatenate([tier_b[between], tier_a[between]])
    wins = np.concatenate([(weight * label)[between], (weight * (1.0 - label))[between]])
    prompts = np.tile(prompt[between], 2)
    counts = wins > 0.0
    if not counts.any():
        raise InputError("no battle between two tiers: nothing to rank by; take fewer tiers, or more battles")
    kept, prompts = np.unique(prompts[counts], return_inverse=True)
    pairs, cell = np.unique(np.stack([winner, loser], axis=1)[counts], axis=0, return_inverse=True)
    # Battles of one prompt in one cell are one entry.
    entries, place = np.unique(np.stack([cell.reshape(-1), prompts], axis=1), axis=0, return_inverse=True)
    embedding = np.asarray(battles.query["embedding"], np.float32)[kept]
    embedding = np.asarray(unit_length(jnp.asarray(embedding)))
    memory = {
        "embedding": embedding,
        "prompt_id": np.asarray(battles.query["prompt_id"])[kept],
        "tier": tier,
        "pairs": pairs.astype(np.int32),
        "cell": entries[:, 0].astype(np.int32),
        "cell_prompt": entries[:, 1].astype(np.int32),
        "cell_wins": np.bincount(place.reshape(-1), weights=wins[counts]).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, memory)


def battle_tiers(
    battles: PreferenceBatch, *, num_models: int, num_tiers: int, names: Sequence[str] | None = None
) -> Int[np.ndarray, "models"]:
    """Tier of each model, 0 = strongest, by a Bradley-Terry fit to all battles; 0 tiers: every model its own.

    Raises:
        InputError: fewer tiers than models, and no chain of battles that connects all of them.
    """
    if num_tiers == 0 or num_tiers >= num_models:
        return np.arange(num_models, dtype=np.int32)
    columns = (np.asarray(leaf) for leaf in (battles.model_a, battles.model_b, battles.label, battles.weight))
    names = names or [f"models[{column}]" for column in range(num_models)]
    return bradley_terry.rated_tiers(*columns, models=names, num_tiers=num_tiers)[1]
