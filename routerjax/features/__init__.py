"""From text to the query of a router: embeddings made here, by an endpoint, or given; or tokens; with their caches."""

from routerjax.features.added_tokens import UNREACHABLE, cls_token, ends_in_cls, one_file, with_cls
from routerjax.features.cache import EmbeddingCache
from routerjax.features.cut_report import CutReport, read_prompts
from routerjax.features.cutting import CHARACTERS_PER_TOKEN
from routerjax.features.endpoint import EndpointEncoder, EndpointFeaturizer, is_endpoint, routellm_features
from routerjax.features.featurizer import (
    FEATURIZERS,
    Featurizer,
    TextFunction,
    embedding_batches,
    read_featurizer,
    register_featurizer,
)
from routerjax.features.given import Embeddings, GivenFeaturizer, read_embeddings
from routerjax.features.open import open_featurizer
from routerjax.features.sentence import SentenceFeaturizer, load_encoder
from routerjax.features.shared import shared_query
from routerjax.features.tokenizer import TextTokenizer, padded_rows, tokenizer_for
from routerjax.features.tokens import TokenFeaturizer, configured_length, load_tokens

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "FEATURIZERS",
    "UNREACHABLE",
    "CutReport",
    "EmbeddingCache",
    "Embeddings",
    "EndpointEncoder",
    "EndpointFeaturizer",
    "Featurizer",
    "GivenFeaturizer",
    "SentenceFeaturizer",
    "TextFunction",
    "TextTokenizer",
    "TokenFeaturizer",
    "cls_token",
    "configured_length",
    "embedding_batches",
    "ends_in_cls",
    "is_endpoint",
    "load_encoder",
    "load_tokens",
    "one_file",
    "open_featurizer",
    "padded_rows",
    "read_embeddings",
    "read_featurizer",
    "read_prompts",
    "register_featurizer",
    "routellm_features",
    "shared_query",
    "tokenizer_for",
    "with_cls",
]
