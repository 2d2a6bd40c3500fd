"""Router families, and the encoders that some of them read text with, as linen modules.

A family: ``module.apply(variables, query, *, deterministic=True) -> scores [batch, models]``.
"""

from routerjax.models.baselines import (
    NearestNeighbors,
    nearest_neighbors_memory,
)
from routerjax.models.bert import BertRouter
from routerjax.models.bert_encoder import BertEncoder, stack_layers, unstack_layers
from routerjax.models.matrix_factorization import MatrixFactorization
from routerjax.models.sentence import EMBEDDING_LAYERS, POOLINGS, EmbedThen, Normalize, Pooling, SentenceEmbedding
from routerjax.models.similarity_weighted import (
    SimilarityWeighted,
    battle_tiers,
    shard_memory,
    similarity_weighted_memory,
)

__all__ = [
    "EMBEDDING_LAYERS",
    "POOLINGS",
    "BertEncoder",
    "BertRouter",
    "EmbedThen",
    "MatrixFactorization",
    "NearestNeighbors",
    "Normalize",
    "Pooling",
    "SentenceEmbedding",
    "SimilarityWeighted",
    "battle_tiers",
    "nearest_neighbors_memory",
    "shard_memory",
    "similarity_weighted_memory",
    "stack_layers",
    "unstack_layers",
]
