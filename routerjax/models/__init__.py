"""Router families, and the encoders that some of them read text with, as linen modules.

A family: ``module.apply(variables, query, *, deterministic=True) -> scores [batch, models]``.
"""

from routerjax.models.baselines import (
    NearestNeighbors,
    nearest_neighbors_memory,
)
from routerjax.models.bert import (
    BertEncoder,
    BertRouter,
    EmbedThen,
    SentenceEmbedding,
    stack_layers,
    unstack_layers,
)
from routerjax.models.matrix_factorization import MatrixFactorization
from routerjax.models.similarity_weighted import (
    SimilarityWeighted,
    battle_tiers,
    shard_memory,
    similarity_weighted_memory,
)
from routerjax.models.ties import WithTie

__all__ = [
    "BertEncoder",
    "BertRouter",
    "EmbedThen",
    "MatrixFactorization",
    "NearestNeighbors",
    "SentenceEmbedding",
    "SimilarityWeighted",
    "WithTie",
    "battle_tiers",
    "nearest_neighbors_memory",
    "shard_memory",
    "similarity_weighted_memory",
    "stack_layers",
    "unstack_layers",
]
