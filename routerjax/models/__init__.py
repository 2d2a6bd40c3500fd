"""Router families, and the encoders that some of them read text with, as linen modules.

A family: ``module.apply(variables, query) -> scores [batch, models]``; with ``deterministic`` where training has noise.
"""

from routerjax.models.baselines import (
    NearestNeighbors,
    nearest_neighbors_memory,
)
from routerjax.models.bert import BertRouter
from routerjax.models.bert_encoder import BertEncoder, stack_layers, unstack_layers
from routerjax.models.clusters import Clusters, nearest_centroid
from routerjax.models.encoder_attributes import (
    DTYPES,
    encoder_attributes,
    encoder_choices,
    encoder_types,
    typed_choices,
)
from routerjax.models.matrix_factorization import MatrixFactorization
from routerjax.models.sentence import EMBEDDING_LAYERS, POOLINGS, EmbedThen, Normalize, Pooling, SentenceEmbedding
from routerjax.models.similarity_weighted import (
    SimilarityWeighted,
    battle_tiers,
    similarity_weighted_memory,
)

__all__ = [
    "DTYPES",
    "EMBEDDING_LAYERS",
    "POOLINGS",
    "BertEncoder",
    "BertRouter",
    "Clusters",
    "EmbedThen",
    "MatrixFactorization",
    "NearestNeighbors",
    "Normalize",
    "Pooling",
    "SentenceEmbedding",
    "SimilarityWeighted",
    "battle_tiers",
    "encoder_attributes",
    "encoder_choices",
    "encoder_types",
    "nearest_centroid",
    "nearest_neighbors_memory",
    "similarity_weighted_memory",
    "stack_layers",
    "typed_choices",
    "unstack_layers",
]
