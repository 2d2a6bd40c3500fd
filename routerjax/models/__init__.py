"""Router families, and the encoders that some of them read text with, as linen modules.

A family: ``module.apply(variables, query, *, deterministic=True) -> scores [batch, models]``.
"""

from routerjax.models.baselines import (
    ConstantScores,
    NearestNeighbors,
    OracleScores,
    RandomScores,
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

__all__ = [
    "BertEncoder",
    "BertRouter",
    "ConstantScores",
    "EmbedThen",
    "MatrixFactorization",
    "NearestNeighbors",
    "OracleScores",
    "RandomScores",
    "SentenceEmbedding",
    "nearest_neighbors_memory",
    "stack_layers",
    "unstack_layers",
]
