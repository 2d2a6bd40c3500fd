"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT as Hugging Face saves them: configuration and tensor names."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routerjax.errors import InputError
from routerjax.pretrained.files import read_json
from routerjax.pretrained.weights import TensorNames

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"

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
# What transformers takes where config.json says nothing; tests compare it with transformers itself.
_BERT_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_act": "gelu",
    "classifier_dropout": None,  # the hidden dropout
}
_DISTILBERT_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "activation": "gelu",
    "seq_classif_dropout": 0.2,
}
_DROPOUT_RATES = {"dropout_rate", "attention_dropout_rate"}
_RATES = {*_DROPOUT_RATES, "layer_norm_epsilon", "initializer_range"}

_EMBEDDINGS = {
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
class _Architecture:
    """What is particular to a ``model_type``; where nothing is said, it is as in BERT.

    Attributes:
        class_name: of the classifier in transformers.
        prefix: of the encoder's tensors in a classifier.
        head: parts of the head of ``class_name``, published -> ours.
        pretraining: regular expression of tensors that a pre-training checkpoint holds and no classifier uses.
        layers: prefix of the layers, below ``prefix``.
        layer: a layer's parts, published -> ours.
        keys: our attribute -> the key in config.json.
        defaults: what transformers takes for the keys that config.json leaves out.
        synonyms: keys that transformers reads as others.
        fixed: attributes that config.json does not say.
        activation, classifier_dropout: keys in config.json.
    """

    class_name: str
    prefix: str
    head: Mapping[str, str]
    pretraining: str
    layers: str = "encoder.layer.{}."
    layer: Mapping[str, str] = field(default_factory=lambda: _BERT_LAYER)
    keys: Mapping[str, str] = field(default_factory=lambda: _BERT_KEYS)
    defaults: Mapping[str, object] = field(default_factory=lambda: _BERT_DEFAULTS)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, int | float] = field(default_factory=dict)
    activation: str = "hidden_act"
    classifier_dropout: str = "classifier_dropout"


_ROBERTA = _Architecture(
    class_name="RobertaForSequenceClassification",
    prefix="roberta.",
    head={"classifier.dense": "dense", "classifier.out_proj": "classifier"},
    pretraining=r"roberta\.pooler\..*|lm_head\..*",
    defaults={**_BERT_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1},
)
_ARCHITECTURES: Mapping[str, _Architecture] = {
    "bert": _Architecture(
        class_name="BertForSequenceClassification",
        prefix="bert.",
        head={"bert.pooler.dense": "dense", "classifier": "classifier"},
        pretraining=r"cls\..*",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": dataclasses.replace(
        _ROBERTA,
        class_name="XLMRobertaForSequenceClassification",
        defaults={**_BERT_DEFAULTS, "pad_token_id": 1},
    ),
    "distilbert": _Architecture(
        class_name="DistilBertForSequenceClassification",
        prefix="distilbert.",
        head={"pre_classifier": "dense", "classifier": "classifier"},
        pretraining=r"vocab_(transform|layer_norm|projector)\..*",
        layers="transformer.layer.{}.",
        layer=_DISTILBERT_LAYER,
        keys=_DISTILBERT_KEYS,
        defaults=_DISTILBERT_DEFAULTS,
        synonyms={"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
        fixed={"num_token_types": 0, "layer_norm_epsilon": 1e-12},
        activation="activation",
        classifier_dropout="seq_classif_dropout",
    ),
}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """What a ``config.json`` says.

    Attributes:
        encoder: the attributes of :class:`routerjax.models.BertEncoder`; as ``model_type`` names the architecture.
        classifier_dropout_rate: before the classifier.
        labels: names of the classifier's outputs; None where none are named, so that their number is not known either.
    """

    encoder: Mapping[str, Any]
    classifier_dropout_rate: float
    labels: tuple[str, ...] | None

    def to_json(self) -> dict[str, object]:
        """The ``config.json`` of a classifier, as transformers reads it: the inverse of :func:`read_bert_config`."""
        architecture, labels = _ARCHITECTURES[self.encoder["model_type"]], dict(enumerate(self.labels or ()))
        return {
            "architectures": [architecture.class_name],
            "model_type": self.encoder["model_type"],
            **{theirs: self.encoder[ours] for ours, theirs in architecture.keys.items()},
            architecture.activation: "gelu",
            architecture.classifier_dropout: self.classifier_dropout_rate,
            "id2label": {str(index): label for index, label in labels.items()},
            "label2id": {label: index for index, label in labels.items()},
            "dtype": "float32",
        }


def read_bert_config(folder: Path) -> BertConfig:
    """Read a folder's ``config.json``; what it leaves out is as transformers takes it.

    Raises:
        InputError: no such file, damaged, or an architecture that :class:`routerjax.models.BertEncoder` is not.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, dict)
    model_type = config.get("model_type")
    # No suggestion: nobody mistypes what a program wrote, and another architecture's name would be a wrong mend.
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        raise InputError(f"{path}: model_type must be one of {', '.join(_ARCHITECTURES)}, got {model_type!r}")
    architecture = _ARCHITECTURES[model_type]
    config = {architecture.synonyms.get(key, key): value for key, value in config.items()}
    left_out = {key: architecture.defaults[key] for key in architecture.keys.values() if key not in config}
    if left_out:
        logger.info("%s leaves out %s: taken as in transformers", path, json.dumps(left_out))
    config = {**architecture.defaults, **config}
    required = {architecture.activation: "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for key, expected in required.items():
        if config.get(key, expected) != expected:
            raise InputError(f"{path}: {key} must be {expected!r}, got {config[key]!r}")
    encoder = {"model_type": model_type, **architecture.fixed}
    for ours, theirs in architecture.keys.items():
        encoder[ours] = _number(
            config[theirs], f"{path}: {theirs}", whole=ours not in _RATES, below=1 if ours in _DROPOUT_RATES else None
        )
    if encoder["num_heads"] < 1 or encoder["width"] % encoder["num_heads"] != 0:
        raise InputError(f"{path}: {encoder['num_heads']} heads do not divide a width of {encoder['width']}")
    rate = config[architecture.classifier_dropout]
    if rate is None and architecture.defaults[architecture.classifier_dropout] is None:
        rate = encoder["dropout_rate"]
    return BertConfig(
        encoder=encoder,
        classifier_dropout_rate=_number(rate, f"{path}: {architecture.classifier_dropout}", whole=False, below=1),
        labels=_labels(config, path),
    )


def _labels(config: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    if labels is None:
        return None
    places = {str(index) for index in range(len(labels))} if isinstance(labels, dict) else set()
    if not places or set(labels) != places or not all(isinstance(name, str) and name for name in labels.values()):
        raise InputError(f"{path}: id2label must map '0', '1', ... to names, got {str(labels)[:200]}")
    return tuple(labels[str(index)] for index in range(len(labels)))


def bert_names(model_type: str, *, head: bool, classifier: bool = True) -> TensorNames:
    """Tensors of a classifier in transformers -> parameters of a module that holds the encoder as ``encoder``.

    Args:
        model_type: as in config.json.
        head: whether the module has the architecture's own head; if not, a published head is left out.
        classifier: whether the last layer of that head is taken: its columns are the labels that it was trained for.
    """
    architecture = _ARCHITECTURES[model_type]
    taken = {
        published: ours
        for published, ours in architecture.head.items()
        if head and (classifier or ours != "classifier")
    }
    encoder = {published: f"encoder/{ours}" for published, ours in _EMBEDDINGS.items()}
    encoder |= {
        f"{architecture.layers}{published}": f"encoder/layer_{{}}/{ours}"
        for published, ours in architecture.layer.items()
    }
    encoder = {f"{architecture.prefix}{published}": ours for published, ours in encoder.items()}
    table: dict[str, str] = {}
    for published, ours in {**encoder, **taken}.items():
        if published.endswith(".weight"):
            table[published] = ours
        else:
            weight = "scale" if ours.endswith("_norm") else "kernel"
            table |= {f"{published}.weight": f"{ours}/{weight}", f"{published}.bias": f"{ours}/bias"}
    # Checkpoints of the bare encoder have no prefix; those that came from TensorFlow call a norm's tensors otherwise.
    aliases = (
        (r"^(embeddings|encoder|transformer|pooler)\.", rf"{architecture.prefix}\1."),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    )
    left_out = [rf"{re.escape(published)}\..*" for published in architecture.head if published not in taken]
    return TensorNames(table, aliases=aliases, ignored=[rf".*\.position_ids|{architecture.pretraining}", *left_out])


def _number(value: object, what: str, *, whole: bool, below: int | None = None) -> int | float:
    accepted = (int,) if whole else (int, float)
    if not isinstance(value, accepted) or isinstance(value, bool) or not 0 <= value < (below or math.inf):
        limit = f" below {below}" if below else ""
        raise InputError(f"{what} must be a non-negative {'whole ' if whole else ''}number{limit}, got {value!r}")
    return value
