"""Router families, and the encoders that some of them read text with, as linen modules.

A family: ``module.apply(variables, query) -> scores [batch, models]``; with ``deterministic`` where training has noise.
"""

from routerjax.models.adapters import merge_adapters
from routerjax.models.baselines import (
    NearestNeighbors,
    nearest_neighbors_memory,
)
from routerjax.models.bert import BertRouter
from routerjax.models.bert_encoder import BertEncoder, stack_layers, unstack_layers
from routerjax.models.causal import CausalRouter
from routerjax.models.clusters import Clusters, nearest_centroid
from routerjax.models.decoder import Decoder
from routerjax.models.decoder_config import DecoderConfig
from routerjax.models.encoders import (
    WHOSE_CHOICES,
    Encoder,
    describe_encoder,
    encoder_sizes,
    example_tokens,
    for_scoring,
    make_encoder,
    require_cudnn,
    typed_choices,
    up_to_layer,
    with_choices,
)
from routerjax.models.flops import Flops, training_flops
from routerjax.models.linear import FROZEN
from routerjax.models.matrix_factorization import MatrixFactorization
from routerjax.models.sentence import EMBEDDING_LAYERS, POOLINGS, EmbedThen, Normalize, Pooling, SentenceEmbedding
from routerjax.models.similarity_weighted import (
    SimilarityWeighted,
    battle_tiers,
    similarity_weighted_memory,
)

__all__ = [
    "EMBEDDING_LAYERS",
    "FROZEN",
    "POOLINGS",
    "WHOSE_CHOICES",
    "BertEncoder",
    "BertRouter",
    "CausalRouter",
    "Clusters",
    "Decoder",
    "DecoderConfig",
    "EmbedThen",
    "Encoder",
    "Flops",
    "MatrixFactorization",
    "NearestNeighbors",
    "Normalize",
    "Pooling",
    "SentenceEmbedding",
    "SimilarityWeighted",
    "battle_tiers",
    "describe_encoder",
    "encoder_sizes",
    "example_tokens",
    "for_scoring",
    "make_encoder",
    "merge_adapters",
    "nearest_centroid",
    "nearest_neighbors_memory",
    "require_cudnn",
    "similarity_weighted_memory",
    "stack_layers",
    "training_flops",
    "typed_choices",
    "unstack_layers",
    "up_to_layer",
    "with_choices",
]
