"""From text to embeddings, made here, by an endpoint, or given; and from text to tokens; with their caches."""

from routerjax.features.cache import EmbeddingCache
from routerjax.features.cut_report import read_prompts
from routerjax.features.cutting import CHARACTERS_PER_TOKEN
from routerjax.features.embeddings import Embeddings, read_embeddings
from routerjax.features.encoder import SentenceEncoder, load_encoder
from routerjax.features.endpoint import EndpointEncoder, is_endpoint, open_encoder, routellm_features
from routerjax.features.spec import FeatureSpec
from routerjax.features.token_cache import tokenize_once
from routerjax.features.tokens import TextTokenizer, padded_rows, tokenizer_for

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "EmbeddingCache",
    "Embeddings",
    "EndpointEncoder",
    "FeatureSpec",
    "SentenceEncoder",
    "TextTokenizer",
    "is_endpoint",
    "load_encoder",
    "open_encoder",
    "padded_rows",
    "read_embeddings",
    "read_prompts",
    "routellm_features",
    "tokenize_once",
    "tokenizer_for",
]
