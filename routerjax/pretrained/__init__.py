"""Pretrained models on disk: where they are, and their tensors under our names."""

from routerjax.pretrained import routellm
from routerjax.pretrained.locate import MINILM, file_sha256, locate
from routerjax.pretrained.weights import BERT_IGNORED, BERT_TABLE, read_weights

__all__ = ["BERT_IGNORED", "BERT_TABLE", "MINILM", "file_sha256", "locate", "read_weights", "routellm"]
