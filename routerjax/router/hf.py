"""Classifiers in Hugging Face's format as routers: what their files say, and the settings that routerjax adds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, cast

from routerjax.errors import InputError
from routerjax.losses import outcome_model
from routerjax.pretrained import read_bert_config, weights_sha256
from routerjax.router.families import make_module
from routerjax.router.reader import load_reader, pretrained_params
from routerjax.router.router import Router

SECTION = "routerjax"
"""The key in ``config.json`` under which a router's own settings lie; transformers passes over it."""
TOKENIZER_CONFIG = "tokenizer_config.json"


class HfSettings(NamedTuple):
    """What a router is besides its logits; see :class:`routerjax.router.Router`. ``inf`` is text, as JSON has none."""

    models: list[str]
    strong: str
    weak: str
    loss: str
    readout: str
    max_length: int
    threshold: float | str | None = None


def router_settings(router: Router, max_length: int) -> HfSettings:
    """Those of a router."""
    threshold = "inf" if router.threshold == math.inf else router.threshold
    return HfSettings(
        list(router.models), router.strong, router.weak, router.loss, router.readout, max_length, threshold
    )


def read_settings(folder: Path) -> HfSettings | None:
    """Those in a folder's ``config.json``; None where another program wrote it.

    Raises:
        InputError: they are damaged.
    """
    described = _read_json(folder / "config.json").get(SECTION)
    if described is None:
        return None
    try:
        settings = HfSettings(**cast("dict[str, Any]", described))
        outcome_model(settings.loss)
        threshold = settings.threshold
        if not (isinstance(settings.max_length, int) and all(isinstance(name, str) for name in settings.models)):
            raise TypeError("wrong types")
        return settings._replace(threshold=None if threshold is None else float(threshold))
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: the section {SECTION} is damaged: {error}") from error


def tokenizer_max_length(folder: Path) -> int:
    """Tokens that transformers would read: what the tokenizer's configuration says, if that is less than the encoder's.

    Raises:
        InputError: a damaged configuration.
    """
    reads = load_reader(folder).encoder.max_length
    said = (
        _read_json(folder / TOKENIZER_CONFIG).get("model_max_length") if (folder / TOKENIZER_CONFIG).is_file() else None
    )
    # Where nothing was said, transformers writes 1e30.
    return int(min(said, reads)) if isinstance(said, int | float) and said >= 2 else reads


def load_hf(folder: Path, settings: HfSettings, *, source: str) -> Router:
    """The router whose scores are the logits of a classifier of the BERT family, as transformers computes them.

    Args:
        folder: with ``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``.
        settings: the columns of the logits, and how they are read.
        source: where the folder came from, to be remembered.

    Raises:
        InputError: damaged, of another architecture, without a classifier, or of another number of labels.
    """
    config, reader = read_bert_config(folder), load_reader(folder)
    attributes = {"head": "architecture", "dropout_rate": config.classifier_dropout_rate}
    module = make_module(
        "bert", num_models=len(settings.models), attributes=attributes, loss=settings.loss, reader=reader
    )
    columns = len(settings.models) + (outcome_model(settings.loss).tie != "none")
    if len(config.labels) != columns:
        raise InputError(f"{folder}: expected {columns} labels, got {len(config.labels)}: {', '.join(config.labels)}")
    return Router(
        family="bert",
        attributes=attributes,
        models=tuple(settings.models),
        strong=settings.strong,
        weak=settings.weak,
        loss=settings.loss,
        readout=settings.readout,
        threshold=None if settings.threshold is None else float(settings.threshold),
        features=reader.spec(source, settings.max_length),
        reader=reader,
        variables={"params": pretrained_params(module, folder)},
        provenance={"imported_from": source, "sha256": weights_sha256(folder)},
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} has no {path.name}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content
