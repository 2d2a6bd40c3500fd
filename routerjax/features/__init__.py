"""From text to embeddings: a sentence encoder with its cache, or embeddings that are given."""

from routerjax.features.cache import EmbeddingCache
from routerjax.features.embeddings import Embeddings, read_embeddings
from routerjax.features.encoder import SentenceEncoder, load_encoder
from routerjax.features.spec import FeatureSpec

__all__ = ["EmbeddingCache", "Embeddings", "FeatureSpec", "SentenceEncoder", "load_encoder", "read_embeddings"]
