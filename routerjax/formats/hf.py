"""Hugging Face's own format: a classifier or a language model that transformers loads, written and read."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import numpy as np

from routerjax.errors import InputError, VerificationError
from routerjax.families import BERT, CAUSAL
from routerjax.features import Embeddings, TokenFeaturizer, load_tokens
from routerjax.formats.decoder_folder import (
    MAX_SHARD_SIZE,
    SCORE,
    decoder_config,
    label_tokens,
    language_model_files,
    linear_tensors,
    load_decoder_tokens,
    merged,
    unless_no_bias,
    unless_whole,
    write_weights,
)
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.golden import compare_scores
from routerjax.formats.hf_settings import (
    SECTION,
    HfSettings,
    is_language_model,
    load_hf,
    read_settings,
    router_settings,
    settings_as_json,
    unless_threshold,
    unless_without_params,
)
from routerjax.formats.tokenizer_folder import json_bytes, padding_token, tokenizer_files
from routerjax.likelihoods import BRADLEY_TERRY, ThreeLabels
from routerjax.models import BertRouter, CausalRouter, unstack_layers
from routerjax.policies import Threshold
from routerjax.pretrained import (
    DECODER_TYPES,
    BertConfig,
    bert_names,
    decoder_class,
    labels_json,
    locate,
    publish_weights,
    read_json,
    read_labels,
    weights_sha256,
)
from routerjax.router import Router

TRANSFORMERS_LABELS = ("LABEL_0", "LABEL_1")
"""Labels that transformers gives a classifier whose configuration names none."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(ReadableFormat, WritableFormat):
    """A folder that ``AutoModelForSequenceClassification`` and ``AutoTokenizer`` of transformers load.

    Its logits are the router's scores, labelled with the names of the models; those of ``three_labels`` are (strong
    wins, tie, weak wins) of the router's pair, the order in which RouteLLM's code reads a classifier. A decoder whose
    labels are tokens is a folder for ``AutoModelForCausalLM``, whose last logits after the last token are the scores.
    Adapters are added to the weights. The pair, likelihood and threshold go into ``config.json`` under ``routerjax``,
    with a hash of them. What was imported and not trained gives back the tensors bit for bit.

    Attributes:
        max_shard_size: of a file of weights that is written, such as 500MB; larger ones are several, with their index.
    """

    name = "hf"
    compared = "scores"

    max_shard_size: str = MAX_SHARD_SIZE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?(KB|MB|GB|TB)", self.max_shard_size, re.ASCII):
            raise InputError(f"max_shard_size must be such as 500MB or 5GB, got {self.max_shard_size!r:.40}")

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read a classifier with a label for each model: what this format wrote, or another whose labels are the names
        of models; ``P(a wins over b) = sigmoid(logit_a - logit_b)``.

        Args:
            source: a folder in Hugging Face's format, or a Hugging Face name.
            strong: one of the labels; default that of the router which was exported.
            weak: likewise.

        Raises:
            InputError: no such source, damaged, without a classifier, or no pair of models named where its files name
                none.
        """
        if self.max_shard_size != MAX_SHARD_SIZE:
            raise InputError("max_shard_size is of export: leave it out")
        folder = locate(source)
        is_decoder = read_json(folder / "config.json", dict).get("model_type") in DECODER_TYPES
        settings, featurizer = read_settings(folder), load_decoder_tokens(source) if is_decoder else load_tokens(source)
        if settings is None:
            if is_language_model(folder):
                raise InputError(
                    f"{source} is a language model whose labels nothing names: import it with --format routellm-causal "
                    "if it is RouteLLM's, or train a router on it"
                )
            labels = read_labels(folder) or TRANSFORMERS_LABELS
            if strong is None or weak is None:
                raise InputError(
                    f"{source} does not say which models it routes between: give --strong and --weak, two of "
                    f"its labels {', '.join(labels)}"
                )
            repeated = [label for label in labels if labels.count(label) > 1]
            if repeated:
                raise InputError(
                    f"{source}: id2label gives the name {repeated[0]!r} to {labels.count(repeated[0])} labels"
                )
            settings = HfSettings(list(labels), Threshold(strong, weak), BRADLEY_TERRY, featurizer.max_length)
        return load_hf(folder, featurizer, settings).with_pair(strong, weak)

    def unmet(self, router: Router) -> Iterator[str]:
        """Refuse what is no classifier of transformers, such as one with another head than the architecture's."""
        if not isinstance(router.module, BertRouter | CausalRouter):
            yield (
                f"Hugging Face's format holds classifiers ({BERT.name}, {CAUSAL.name}), got a router of family "
                f"{router.family}"
            )
            return
        if "calibration" in router.variables:
            yield "Hugging Face's format has no place for a calibration: export the router without it"
        yield from unless_without_params(router.likelihood)
        yield from unless_threshold(router.policy)
        if isinstance(router.module, CausalRouter):
            yield from unless_whole(router)
            yield from unless_no_bias(router, "classifiers of transformers")
        elif router.module.head != "architecture":
            yield (
                f"transformers has no classifier with the head {router.module.head!r}; train with the router attribute "
                "head='architecture'"
            )
        if cast(TokenFeaturizer, router.featurizer).truncation == "middle":
            yield "transformers cannot leave out the middle of a text, as this router does (truncation)"

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the configuration, the weights and the tokenizer's files."""
        del query
        plain = _as_published(router)
        is_decoder = isinstance(plain.module, CausalRouter)
        config, tensors, files = _decoder_files(plain) if is_decoder else _classifier_files(plain)
        write_weights(folder, tensors, self.max_shard_size)
        settings = router_settings(plain, weights_sha256(folder))
        files["config.json"] = json_bytes({**config, SECTION: settings_as_json(settings)})
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Read the folder and compare scores, up to :data:`TOLERANCE`, tokens and settings."""
        written = HuggingFace().read(folder)
        settings = [(one.models, one.policy, one.likelihood) for one in (written, _as_published(router))]
        if settings[0] != settings[1]:
            raise VerificationError("its settings are others")
        return {
            "model.safetensors": compare_scores(
                router, written, cast(Sequence[str], query), is_reversed=_are_labels_reversed(router)
            )
        }

    def usage(self, router: Router, path: Path) -> str:
        """The classes of transformers that load it."""
        is_labelled = isinstance(router.module, CausalRouter) and router.module.head != "linear"
        kind = "AutoModelForCausalLM" if is_labelled else "AutoModelForSequenceClassification"
        text = cast(TokenFeaturizer, router.featurizer).template.render("PROMPT")
        around = "" if text == "PROMPT" else f"; its texts are {text!r}, to which no special tokens are added"
        return f"transformers' {kind} and AutoTokenizer load it{around}"


def _classifier_files(router: Router) -> tuple[dict[str, object], dict[str, np.ndarray], dict[str, bytes]]:
    """Configuration, tensors and tokenizer of a classifier of the BERT family."""
    featurizer, module = cast(TokenFeaturizer, router.featurizer), cast(BertRouter, router.module)
    config = BertConfig(
        encoder=featurizer.to_dict()["encoder"],
        classifier_dropout_rate=module.dropout_rate,
        labels=router.likelihood.output_names(router.models),
    )
    tensors = publish_weights(router.variables["params"], bert_names(module.encoder.model_type, head=True))
    return config.to_json(), tensors, tokenizer_files(featurizer)


def _decoder_files(router: Router) -> tuple[dict[str, object], dict[str, np.ndarray], dict[str, bytes]]:
    """Configuration, tensors and tokenizer of a decoder without adapters, with either head."""
    featurizer, module = cast(TokenFeaturizer, router.featurizer), cast(CausalRouter, router.module)
    names = router.likelihood.output_names(router.models)
    if module.head != "linear":
        return language_model_files(router, label_tokens(names))
    pad_id, pad_token = padding_token(featurizer)
    class_name = decoder_class(module.encoder.model_type, "SequenceClassification")
    config = {**decoder_config(router, class_name=class_name), **labels_json(names), "pad_token_id": pad_id}
    tensors = linear_tensors(router, {"classifier": router.variables["params"]["classifier"]}, SCORE)
    return config, tensors, tokenizer_files(featurizer, pad_token=pad_token)


def _as_published(router: Router) -> Router:
    """Copy of the router in the form of the file: layer by layer or without adapters, and labels with the strong model
    first.
    """
    router = merged(router) if isinstance(router.module, CausalRouter) else router
    featurizer, params, models = cast(TokenFeaturizer, router.featurizer), router.variables["params"], router.models
    module = router.module
    if isinstance(module, CausalRouter):
        if module.head == "linear":
            module = module.clone(use_bias=False, parent=None)
            params = {**params, "classifier": {"kernel": params["classifier"]["kernel"]}}
    elif isinstance(module, BertRouter) and module.encoder.scan_layers:
        encoder = module.encoder.clone(scan_layers=False, parent=None)
        featurizer = dataclasses.replace(featurizer, encoder=encoder)
        module = module.clone(encoder=encoder, parent=None)
        params = {**params, "encoder": unstack_layers(params["encoder"])}
    if _are_labels_reversed(router):
        params, models = dict(params), models[::-1]
        if "label_embedding" in params:
            params["label_embedding"] = params["label_embedding"][::-1]
        else:
            params["classifier"] = jax.tree.map(lambda leaf: leaf[..., ::-1], params["classifier"])
    return dataclasses.replace(
        router, module=module, featurizer=featurizer, models=models, variables={"params": params}
    )


def _are_labels_reversed(router: Router) -> bool:
    """Return True if the logits are (weak wins, tie, strong wins): a training run sorts its models by name."""
    return isinstance(router.likelihood, ThreeLabels) and router.strong == router.models[1]
