"""Router families, and the sentence encoder, as linen modules.

A family: ``module.apply(variables, query, *, deterministic=True) -> scores [batch, models]``.
"""

from routerjax.models.baselines import (
    ConstantScores,
    NearestNeighbors,
    OracleScores,
    RandomScores,
    nearest_neighbors_memory,
)
from routerjax.models.bert import BertEncoder, SentenceEmbedding
from routerjax.models.matrix_factorization import MatrixFactorization

__all__ = [
    "BertEncoder",
    "ConstantScores",
    "MatrixFactorization",
    "NearestNeighbors",
    "OracleScores",
    "RandomScores",
    "SentenceEmbedding",
    "nearest_neighbors_memory",
]
