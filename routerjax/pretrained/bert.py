"""The BERT family as Hugging Face saves it: configuration and tensor names."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerjax.errors import InputError
from routerjax.pretrained.architectures import ARCHITECTURES, EMBEDDINGS, Architecture
from routerjax.pretrained.auto_classes import from_pretrained
from routerjax.pretrained.files import read_json
from routerjax.pretrained.weights import TensorNames

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"

OF_CLASSIFIERS = ("id2label", "label2id", "num_labels", "classifier_dropout", "seq_classif_dropout")
_DROPOUT_RATES = {"dropout_rate", "attention_dropout_rate"}
_RATES = {*_DROPOUT_RATES, "layer_norm_epsilon", "initializer_range"}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Configuration of a classifier, from its ``config.json``.

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
        architecture = ARCHITECTURES[self.encoder["model_type"]]
        key = architecture.classifier_dropout
        return {
            "architectures": [architecture.class_name],
            "model_type": self.encoder["model_type"],
            **{theirs: self.encoder[ours] for ours, theirs in architecture.keys.items()},
            architecture.activation: "gelu",
            **({} if key is None else {key: self.classifier_dropout_rate}),
            **labels_json(self.labels or ()),
            "dtype": "float32",
        }


def labels_json(labels: Sequence[str]) -> dict[str, object]:
    """Names of a classifier's outputs, as a ``config.json`` has them."""
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def read_bert_config(folder: Path) -> BertConfig:
    """Read the ``config.json`` of a classifier; what it leaves out is as transformers takes it.

    What it leaves out of the encoder is logged by :func:`read_bert_encoder`, which reads the same file.

    Raises:
        InputError: as :func:`read_bert_encoder`, or labels or a dropout of the classifier that are none.
    """
    path, architecture, config = _read(folder)
    encoder, key = _encoder(path, architecture, config), architecture.classifier_dropout
    dropout = None if key is None else _as_transformers_reads(path, config, (key,))[key]
    rate = encoder["dropout_rate"] if dropout is None else _number(dropout, f"{path}: {key}", whole=False, below=1)
    return BertConfig(encoder=encoder, classifier_dropout_rate=rate, labels=read_labels(folder))


def read_labels(folder: Path) -> tuple[str, ...] | None:
    """Read the names of a classifier's outputs from a ``config.json`` of whichever architecture; None if it has none.

    Raises:
        InputError: no such file, damaged, or labels that are none.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, dict)
    if not {"id2label", "num_labels"} & set(config):
        return None
    return _labels(_as_transformers_reads(path, config, ("id2label",))["id2label"], path)


def read_bert_encoder(folder: Path) -> dict[str, Any]:
    """Read the attributes of the encoder alone from a ``config.json``, whatever it says of a classifier.

    Returns:
        As :attr:`BertConfig.encoder`.

    Raises:
        InputError: no such file, damaged, or an architecture that :class:`routerjax.models.BertEncoder` is not.
    """
    path, architecture, config = _read(folder)
    of_encoder = {key: value for key, value in config.items() if key not in OF_CLASSIFIERS}
    return _encoder(path, architecture, of_encoder, level=logging.INFO)


def _read(folder: Path) -> tuple[Path, Architecture, dict[str, Any]]:
    """The file, the architecture that it names, and its content."""
    path = folder / CONFIG_FILE
    config = read_json(path, dict)
    model_type = config.get("model_type")
    # No suggestion: nobody mistypes what a program wrote, and another architecture's name would be a wrong mend.
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise InputError(f"{path}: model_type must be one of {', '.join(ARCHITECTURES)}, got {model_type!r}")
    return path, ARCHITECTURES[model_type], config


def _as_transformers_reads(path: Path, config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Values of keys, by AutoConfig of transformers, which knows defaults and synonyms."""
    content = json.dumps(config).encode()
    return from_pretrained(
        "AutoConfig", {CONFIG_FILE: content}, path, lambda read: {key: getattr(read, key) for key in keys}
    )


def _encoder(
    path: Path, architecture: Architecture, config: Mapping[str, Any], *, level: int = logging.DEBUG
) -> dict[str, Any]:
    """Attributes of the encoder; transformers is asked for those alone that the file leaves out, which is logged."""
    required = {architecture.activation: "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for key, expected in {**required, **architecture.required}.items():
        if config.get(key, expected) != expected:
            raise InputError(f"{path}: {key} must be {expected!r}, got {config[key]!r}")
    values = {key: config[key] for key in architecture.keys.values() if key in config}
    left_out = [key for key in architecture.keys.values() if key not in config]
    if left_out:
        defaults = _as_transformers_reads(path, config, left_out)
        logger.log(level, "%s leaves out %s: taken as in transformers", path, json.dumps(defaults))
        values |= defaults
    encoder: dict[str, Any] = {"model_type": config["model_type"], **architecture.fixed}
    for ours, theirs in architecture.keys.items():
        encoder[ours] = _number(
            values[theirs], f"{path}: {theirs}", whole=ours not in _RATES, below=1 if ours in _DROPOUT_RATES else None
        )
    if encoder["num_heads"] < 1 or encoder["width"] % encoder["num_heads"] != 0:
        raise InputError(f"{path}: {encoder['num_heads']} heads do not divide a width of {encoder['width']}")
    return encoder


def _labels(labels: Mapping[int, object], path: Path) -> tuple[str, ...]:
    names = tuple(name for _, name in sorted(labels.items()) if isinstance(name, str) and name)
    if not names or len(names) < len(labels) or set(labels) != set(range(len(labels))):
        raise InputError(f"{path}: id2label must map '0', '1', ... to names, got {str(dict(labels))[:200]}")
    return names


def bert_names(
    model_type: str, *, head: bool, classifier: bool = True, layers_left_out: Collection[int] = ()
) -> TensorNames:
    """Tensors of a classifier in transformers -> parameters of a module that holds the encoder as ``encoder``.

    Args:
        model_type: as in config.json.
        head: whether the module has the architecture's own head; if not, a published head is left out.
        classifier: whether the last layer of that head is taken: its columns are the labels that it was trained for.
        layers_left_out: numbers of the layers that are not taken.
    """
    architecture = ARCHITECTURES[model_type]
    head_table = {
        published: ours
        for published, ours in architecture.head.items()
        if head and (classifier or ours != "classifier")
    }
    encoder = {published: f"encoder/{ours}" for published, ours in {**EMBEDDINGS, **architecture.others}.items()}
    encoder |= {
        f"{architecture.layers}{published}": f"encoder/layer_{{}}/{ours}"
        for published, ours in architecture.layer.items()
    }
    encoder = {f"{architecture.prefix}{published}": ours for published, ours in encoder.items()}
    table: dict[str, str] = {}
    for published, ours in {**encoder, **head_table}.items():
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
    left_out = [rf"{re.escape(published)}\..*" for published in architecture.head if published not in head_table]
    return TensorNames(
        table,
        aliases=aliases,
        ignored=[rf".*\.position_ids|{architecture.pretraining}", *left_out],
        layers_left_out=layers_left_out,
    )


def _number(value: object, what: str, *, whole: bool, below: int | None = None) -> int | float:
    accepted = (int,) if whole else (int, float)
    if not isinstance(value, accepted) or isinstance(value, bool) or not 0 <= value < (below or math.inf):
        limit = f" below {below}" if below else ""
        raise InputError(f"{what} must be a non-negative {'whole ' if whole else ''}number{limit}, got {value!r}")
    return value
