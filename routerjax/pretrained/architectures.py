"""Architectures of the BERT family in transformers: names of tensors and keys of config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

# Ours -> the key in config.json.
_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "padding_id": "pad_token_id",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
_DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "width": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "mlp_dim": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "padding_id": "pad_token_id",
    "dropout_rate": "dropout",
    "attention_dropout_rate": "attention_dropout",
    "initializer_range": "initializer_range",
}
_MPNET_KEYS = {ours: key for ours, key in _BERT_KEYS.items() if ours != "num_token_types"}

EMBEDDINGS: Mapping[str, str] = {
    "embeddings.word_embeddings.weight": "token_embedding",
    "embeddings.position_embeddings.weight": "position_embedding",
    "embeddings.token_type_embeddings.weight": "token_type_embedding",
    "embeddings.LayerNorm": "embedding_norm",
}
_BERT_LAYER = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}
_MPNET_LAYER = {
    "attention.attn.q": "attention/query",
    "attention.attn.k": "attention/key",
    "attention.attn.v": "attention/value",
    "attention.attn.o": "attention/out",
    "attention.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}
_DISTILBERT_LAYER = {
    "attention.q_lin": "attention/query",
    "attention.k_lin": "attention/key",
    "attention.v_lin": "attention/value",
    "attention.out_lin": "attention/out",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "mlp_in",
    "ffn.lin2": "mlp_out",
    "output_layer_norm": "mlp_norm",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Architecture of a ``model_type``; the defaults are BERT's.

    Attributes:
        class_name: of the classifier in transformers.
        prefix: of the encoder's tensors in a classifier.
        head: parts of the head of ``class_name``, published -> ours.
        pretraining: regular expression of tensors that a pre-training checkpoint holds and no classifier uses.
        layers: prefix of the layers, below ``prefix``.
        others: parts of the encoder that BERT has not, published -> ours.
        layer: a layer's parts, published -> ours.
        keys: our attribute -> the key in config.json.
        fixed: attributes that config.json does not say.
        required: keys in config.json, and the only value of each that transformers computes with or we do.
        activation: key in config.json.
        classifier_dropout: key in config.json; None where the classifier has the hidden dropout.
    """

    class_name: str
    prefix: str
    head: Mapping[str, str]
    pretraining: str
    layers: str = "encoder.layer.{}."
    others: Mapping[str, str] = field(default_factory=dict)
    layer: Mapping[str, str] = field(default_factory=lambda: _BERT_LAYER)
    keys: Mapping[str, str] = field(default_factory=lambda: _BERT_KEYS)
    fixed: Mapping[str, int | float] = field(default_factory=dict)
    required: Mapping[str, object] = field(default_factory=dict)
    activation: str = "hidden_act"
    classifier_dropout: str | None = "classifier_dropout"


_ROBERTA = Architecture(
    class_name="RobertaForSequenceClassification",
    prefix="roberta.",
    head={"classifier.dense": "dense", "classifier.out_proj": "classifier"},
    pretraining=r"roberta\.pooler\..*|lm_head\..*",
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(
        class_name="BertForSequenceClassification",
        prefix="bert.",
        head={"bert.pooler.dense": "dense", "classifier": "classifier"},
        pretraining=r"cls\..*",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(
        _ROBERTA,
        class_name="XLMRobertaForSequenceClassification",
    ),
    "camembert": dataclasses.replace(
        _ROBERTA,
        class_name="CamembertForSequenceClassification",
    ),
    "mpnet": Architecture(
        class_name="MPNetForSequenceClassification",
        prefix="mpnet.",
        head={"classifier.dense": "dense", "classifier.out_proj": "classifier"},
        pretraining=r"mpnet\.pooler\..*|lm_head\..*",
        others={"encoder.relative_attention_bias.weight": "distance_bias"},
        layer=_MPNET_LAYER,
        keys=_MPNET_KEYS,
        fixed={"num_token_types": 0},
        required={"pad_token_id": 1, "relative_attention_num_buckets": 32},
        classifier_dropout=None,
    ),
    "distilbert": Architecture(
        class_name="DistilBertForSequenceClassification",
        prefix="distilbert.",
        head={"pre_classifier": "dense", "classifier": "classifier"},
        pretraining=r"vocab_(transform|layer_norm|projector)\..*",
        layers="transformer.layer.{}.",
        layer=_DISTILBERT_LAYER,
        keys=_DISTILBERT_KEYS,
        fixed={"num_token_types": 0, "layer_norm_epsilon": 1e-12},
        activation="activation",
        classifier_dropout="seq_classif_dropout",
    ),
}
