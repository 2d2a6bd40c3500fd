"""Classifiers in Hugging Face's format as routers: what their files say, and the settings that routerjax adds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from routerjax.errors import InputError, model_column
from routerjax.families import BERT, pretrained_params
from routerjax.features import TokenFeaturizer
from routerjax.likelihoods import Likelihood, read_likelihood
from routerjax.pretrained import read_bert_config, read_json, weights_sha256
from routerjax.router.router import Router
from routerjax.sealing import seal, unseal
from routerjax.validation import coerce

logger = logging.getLogger(__name__)

SECTION = "routerjax"
"""The key in ``config.json`` under which a router's own settings lie; transformers passes over it, and keeps it."""


CHANGES = (
    "for another pair of models give import --strong and --weak; all else by calibrate or train, and export it again "
    "(routerjax export --format hf)"
)


class HfSettings(NamedTuple):
    """What a router is besides its logits; see :class:`routerjax.router.Router`. ``inf`` is text, as JSON has none.

    ``weights_sha256`` is that of the weights which the threshold was found for.
    """

    models: Sequence[str]
    strong: str
    weak: str
    likelihood: Likelihood
    max_length: int
    threshold: float | str | None = None
    weights_sha256: str | None = None


def require_no_params(likelihood: Likelihood) -> None:
    """Raise InputError for a likelihood with parameters of its own, which are no logits."""
    if likelihood.initial_params():
        raise InputError(
            f"Hugging Face's format has no place for the loss {likelihood.name}, whose tie score is no logit"
        )


def router_settings(router: Router, max_length: int, weights_sha256: str) -> HfSettings:
    """Those of a router."""
    return HfSettings(
        models=list(router.models),
        strong=router.strong,
        weak=router.weak,
        likelihood=router.likelihood,
        max_length=max_length,
        threshold=router.threshold_as_json,
        weights_sha256=weights_sha256,
    )


def settings_as_json(settings: HfSettings) -> dict[str, object]:
    """The section of ``config.json``, with the hash of its own content."""
    return seal({**settings._asdict(), "likelihood": settings.likelihood.to_dict()})


def read_settings(folder: Path) -> HfSettings | None:
    """Those in a folder's ``config.json``; None where another program wrote it.

    Raises:
        InputError: they are damaged, or they, or the labels that go by them, were changed after they were written.
    """
    described = read_json(folder / "config.json", dict).get(SECTION)
    if described is None:
        return None
    where = f"{folder / 'config.json'}: the section {SECTION}"
    if not isinstance(described, dict):
        raise InputError(f"{where} is damaged: expected an object, got {described!r:.40}")
    fields = unseal(described, where, CHANGES)
    try:
        if not isinstance(fields.get("likelihood"), dict):
            raise InputError(f"likelihood must be an object, got {fields.get('likelihood')!r:.40}")
        settings = HfSettings(**{**fields, "likelihood": read_likelihood(fields["likelihood"])})
        _check(settings)
        threshold = None if settings.threshold is None else float(settings.threshold)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is damaged: {error}") from error
    expected = settings.likelihood.output_names(tuple(settings.models))
    labels = read_bert_config(folder).labels
    if labels != expected:
        raise InputError(
            f"{folder / 'config.json'}: id2label was changed after routerjax wrote it: expected {', '.join(expected)}, "
            f"got {', '.join(labels or ['none'])}; {CHANGES}"
        )
    return settings._replace(threshold=threshold)


def _check(settings: HfSettings) -> None:
    models = settings.models
    is_list = isinstance(models, list) and all(isinstance(name, str) for name in models)
    if not is_list or len(models) < 2 or len(set(models)) != len(models):
        raise InputError(f"models must be a list of two or more different names, got {models!r}")
    for name in (settings.strong, settings.weak):
        if not isinstance(name, str):
            raise InputError(f"strong and weak must be names, got {name!r}")
        model_column(name, models, "its")
    if settings.strong == settings.weak:
        raise InputError(f"strong and weak must be different models, got {settings.strong!r} for both")
    require_no_params(settings.likelihood)
    coerce(settings.max_length, int, "max_length")
    coerce(settings.weights_sha256, str | None, "weights_sha256")


def load_hf(folder: Path, featurizer: TokenFeaturizer, settings: HfSettings) -> Router:
    """The router whose scores are the logits of a classifier of the BERT family, as transformers computes them.

    A threshold that was found for other weights, which somebody trained further since, is dropped; it is logged.

    Args:
        folder: with ``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``.
        featurizer: the folder's; see :func:`routerjax.features.load_tokens`.
        settings: the columns of the logits, and how they are read.

    Raises:
        InputError: damaged, of another architecture, without a classifier, or of another number of labels.
    """
    config = read_bert_config(folder)
    attributes = {"head": "architecture", "dropout_rate": config.classifier_dropout_rate}
    models, likelihood = tuple(settings.models), settings.likelihood
    featurizer = dataclasses.replace(featurizer, max_length=settings.max_length)
    outputs = len(likelihood.output_names(models))
    module = BERT.make_module(num_outputs=outputs, attributes=attributes, featurizer=featurizer)
    if config.labels is not None and len(config.labels) != outputs:
        raise InputError(f"{folder}: expected {outputs} labels, got {len(config.labels)}: {', '.join(config.labels)}")
    sha256, threshold, source = weights_sha256(folder), settings.threshold, featurizer.source
    if threshold is not None and settings.weights_sha256 != sha256:
        logger.warning("%s: dropped the threshold %s, which was found for other weights: calibrate", source, threshold)
        threshold = None
    return Router(
        module=module,
        featurizer=featurizer,
        models=models,
        strong=settings.strong,
        weak=settings.weak,
        likelihood=likelihood,
        threshold=None if threshold is None else float(threshold),
        variables={"params": pretrained_params(module, folder)},
        provenance={"imported_from": source, "sha256": sha256},
    )
