"""Models in Hugging Face's format as routers: what their files say, and the settings that routerjax adds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from routerjax.errors import InputError
from routerjax.families import BERT, pretrained_params
from routerjax.features import TokenFeaturizer
from routerjax.formats.decoder_folder import load_classifier, load_language_model
from routerjax.likelihoods import Likelihood, read_likelihood
from routerjax.models import Decoder
from routerjax.policies import Policy, Threshold, read_policy
from routerjax.pretrained import (
    NO_TEMPLATE,
    ChatTemplate,
    decoder_class,
    read_bert_config,
    read_json,
    read_labels,
    weights_sha256,
)
from routerjax.router.router import Router
from routerjax.sealing import seal, unseal
from routerjax.validation import coerce, from_json

logger = logging.getLogger(__name__)

SECTION = "routerjax"
"""The key in ``config.json`` under which a router's own settings lie; transformers passes over it, and keeps it."""


CHANGES = (
    "for another pair of models give import --strong and --weak; all else by calibrate or train, and export it again "
    "(routerjax export --format hf)"
)


class HfSettings(NamedTuple):
    """Settings of a router besides its logits; see :class:`routerjax.router.Router`.

    ``weights_sha256`` is that of the weights which the threshold was found for; ``template`` is what a prompt is put
    into.
    """

    models: Sequence[str]
    policy: Threshold
    likelihood: Likelihood
    max_length: int
    weights_sha256: str | None = None
    template: ChatTemplate = NO_TEMPLATE


def unless_without_params(likelihood: Likelihood) -> Iterator[str]:
    """Refuse a likelihood with parameters of its own, which are no logits."""
    if likelihood.initial_params():
        yield f"Hugging Face's format has no place for the loss {likelihood.name}, whose tie score is no logit"


def unless_threshold(policy: Policy) -> Iterator[str]:
    """Refuse a policy that is no threshold for one pair of models."""
    if not isinstance(policy, Threshold):
        yield f"this format holds the policy {Threshold.name}, got {policy.name!r}"


def warn_of_threshold(router: Router, format: str) -> None:
    """Log that a format has no place for the router's threshold, if it has one."""
    if router.policy.chooses:
        logger.warning("%s has no place for the threshold %s: it is left out", format, router.threshold)


def router_settings(router: Router, weights_sha256: str) -> HfSettings:
    """Settings of a router that reads text."""
    featurizer = cast(TokenFeaturizer, router.featurizer)
    return HfSettings(
        models=list(router.models),
        policy=cast(Threshold, router.policy),
        likelihood=router.likelihood,
        max_length=featurizer.max_length,
        weights_sha256=weights_sha256,
        template=featurizer.template,
    )


def settings_as_json(settings: HfSettings) -> dict[str, object]:
    """The section of ``config.json``, with the hash of its own content."""
    records = {"policy": settings.policy.to_dict(), "likelihood": settings.likelihood.to_dict()}
    records["template"] = dataclasses.asdict(settings.template)
    return seal({**settings._asdict(), **records})


def read_settings(folder: Path) -> HfSettings | None:
    """Settings in a folder's ``config.json``; None where another program wrote it.

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
        for name in ("policy", "likelihood"):
            if not isinstance(fields.get(name), dict):
                raise InputError(f"{name} must be an object, got {fields.get(name)!r:.40}")
        records = {"policy": read_policy(fields["policy"]), "likelihood": read_likelihood(fields["likelihood"])}
        records["template"] = from_json(fields.get("template"), ChatTemplate, "template")
        settings = HfSettings(**{**fields, **records})
        _check(settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is damaged: {error}") from error
    expected = settings.likelihood.output_names(tuple(settings.models))
    labels = read_labels(folder)
    if labels != expected and not is_language_model(folder):
        raise InputError(
            f"{folder / 'config.json'}: id2label was changed after routerjax wrote it: expected {', '.join(expected)}, "
            f"got {', '.join(labels or ['none'])}; {CHANGES}"
        )
    return settings


def _check(settings: HfSettings) -> None:
    models = settings.models
    is_list = isinstance(models, list) and all(isinstance(name, str) for name in models)
    if not is_list or len(models) < 2 or len(set(models)) != len(models):
        raise InputError(f"models must be a list of two or more different names, got {models!r}")
    for reason in (*unless_threshold(settings.policy), *unless_without_params(settings.likelihood)):
        raise InputError(reason)
    settings.policy.require_models(tuple(models))
    coerce(settings.max_length, int, "max_length")
    coerce(settings.weights_sha256, str | None, "weights_sha256")


def is_language_model(folder: Path) -> bool:
    """Return True if the folder's ``config.json`` is of a language model rather than a classifier."""
    config = read_json(folder / "config.json", dict)
    model_type, classes = config.get("model_type"), config.get("architectures")
    return isinstance(model_type, str) and classes == [decoder_class(model_type, "CausalLM")]


def load_hf(folder: Path, featurizer: TokenFeaturizer, settings: HfSettings) -> Router:
    """The router whose scores are the logits of a classifier, or of a language model's last tokens.

    A threshold that was found for other weights, which somebody trained further since, is dropped; it is logged.

    Args:
        folder: with ``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``.
        featurizer: the folder's; see :func:`routerjax.features.load_tokens`.
        settings: the columns of the logits, and how they are read.

    Raises:
        InputError: damaged, of another architecture, without a classifier, or of another number of labels.
    """
    models, likelihood = tuple(settings.models), settings.likelihood
    featurizer = dataclasses.replace(featurizer, max_length=settings.max_length, template=settings.template)
    labels, outputs = read_labels(folder), len(likelihood.output_names(models))
    is_decoder, is_labelled = isinstance(featurizer.encoder, Decoder), is_language_model(folder)
    if labels is not None and len(labels) != outputs and not is_labelled:
        raise InputError(f"{folder}: expected {outputs} labels, got {len(labels)}: {', '.join(labels)}")
    if is_labelled:
        module, featurizer, params = load_language_model(folder, featurizer, outputs)
    elif is_decoder:
        module, params = load_classifier(folder, featurizer, outputs)
    else:
        attributes = {"head": "architecture", "dropout_rate": read_bert_config(folder).classifier_dropout_rate}
        module = BERT.make_module(num_outputs=outputs, attributes=attributes, featurizer=featurizer)
        params = pretrained_params(module, folder)
    sha256, policy, source = weights_sha256(folder), settings.policy, featurizer.source
    if policy.chooses and settings.weights_sha256 != sha256:
        logger.warning(
            "%s: dropped the threshold %s, which was found for other weights: calibrate", source, policy.threshold
        )
        policy = Threshold(policy.strong, policy.weak)
    return Router(
        module=module,
        featurizer=featurizer,
        models=models,
        policy=policy,
        likelihood=likelihood,
        variables={"params": params},
        provenance={"imported_from": source, "sha256": sha256},
    )
