"""From text to embeddings: a sentence encoder or an endpoint, with their cache; or embeddings that are given."""

from routerjax.features.cache import EmbeddingCache
from routerjax.features.embeddings import Embeddings, read_embeddings
from routerjax.features.encoder import SentenceEncoder, load_encoder
from routerjax.features.endpoint import EndpointEncoder, open_encoder, routellm_features
from routerjax.features.spec import FeatureSpec

__all__ = [
    "EmbeddingCache",
    "Embeddings",
    "EndpointEncoder",
    "FeatureSpec",
    "SentenceEncoder",
    "load_encoder",
    "open_encoder",
    "read_embeddings",
    "routellm_features",
]
