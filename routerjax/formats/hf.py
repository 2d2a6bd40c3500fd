"""Hugging Face's own format: a classifier that transformers loads, written and read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np

from routerjax.errors import InputError, VerificationError
from routerjax.families import BERT
from routerjax.features import Embeddings, TokenFeaturizer, load_tokens
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.hf_settings import (
    SECTION,
    HfSettings,
    load_hf,
    read_settings,
    require_no_params,
    require_threshold_policy,
    router_settings,
    settings_as_json,
)
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.models import BertRouter, unstack_layers
from routerjax.policies import Threshold
from routerjax.pretrained import (
    RESOLVED_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    BertConfig,
    bert_names,
    locate,
    publish_weights,
    read_bert_config,
    tensor_bytes,
)
from routerjax.router import Router

TOLERANCE = 1e-5
"""Largest difference of score that is accepted: times the largest score where that is above 1."""
NUM_COMPARED = 8
"""The last golden prompts, so many: the one that is cut among them."""

TRANSFORMERS_LABELS = ("LABEL_0", "LABEL_1")
"""Labels that transformers gives a classifier whose configuration names none."""


class HuggingFace(ReadableFormat, WritableFormat):
    """A folder that ``AutoModelForSequenceClassification`` and ``AutoTokenizer`` of transformers load: family ``bert``.

    Its logits are the router's scores, labelled with the names of the models; those of ``three_labels`` are (strong
    wins, tie, weak wins) of the router's pair, the order in which RouteLLM's code reads a classifier. The pair,
    likelihood and threshold go into ``config.json`` under ``routerjax``, with a hash of them. What was imported and not
    trained gives back the tensors bit for bit.
    """

    name = "hf"
    compared = "scores"

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
        folder = locate(source)
        settings, featurizer = read_settings(folder), load_tokens(source)
        if settings is None:
            labels = read_bert_config(folder).labels or TRANSFORMERS_LABELS
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

    def require_form(self, router: Router) -> None:
        """Refuse what is no classifier of transformers, such as one with another head than the architecture's."""
        if not isinstance(router.module, BertRouter):
            raise InputError(
                f"Hugging Face's format holds classifiers ({BERT.name}), got a router of family {router.family}"
            )
        if "calibration" in router.variables:
            raise InputError("Hugging Face's format has no place for a calibration: export the router without it")
        require_no_params(router.likelihood)
        require_threshold_policy(router.policy)
        head = router.module.head
        if head != "architecture":
            raise InputError(
                f"transformers has no classifier with the head {head!r}; train with the router attribute "
                "head='architecture'"
            )
        if cast(TokenFeaturizer, router.featurizer).truncation == "middle":
            raise InputError("transformers cannot leave out the middle of a text, as this router does (truncation)")

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the configuration, the weights and the tokenizer's files."""
        del query
        plain = _as_published(router)
        featurizer, module = cast(TokenFeaturizer, plain.featurizer), cast(BertRouter, plain.module)
        config = BertConfig(
            encoder=featurizer.to_dict()["encoder"],
            classifier_dropout_rate=module.dropout_rate,
            labels=plain.likelihood.output_names(plain.models),
        )
        names = bert_names(module.encoder.model_type, head=True)
        # torch's loaders ask for the metadata that torch's savers write.
        weights = tensor_bytes(publish_weights(plain.variables["params"], names), {"format": "pt"})
        settings = router_settings(plain, featurizer.max_length, hashlib.sha256(weights).hexdigest())
        files = {
            **_tokenizer_files(featurizer),
            "config.json": _json_bytes({**config.to_json(), SECTION: settings_as_json(settings)}),
            "model.safetensors": weights,
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Read the folder and compare scores, up to :data:`TOLERANCE`, tokens and settings."""
        written = self.read(folder)
        settings = [(one.models, one.policy, one.likelihood) for one in (written, _as_published(router))]
        if settings[0] != settings[1]:
            raise VerificationError("its settings are others")
        if written.featurizer.fingerprint != router.featurizer.fingerprint:
            raise VerificationError("its tokens are others")
        prompts = cast(Sequence[str], query)
        expected = _scores(router, prompts)
        difference = float(np.abs(_scores(written, prompts) - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise VerificationError(f"scores differ by {difference:.1e}")
        return {"model.safetensors": difference}

    def usage(self, router: Router, path: Path) -> str:
        """The classes of transformers that load it."""
        return "transformers' AutoModelForSequenceClassification and AutoTokenizer load it"


def _as_published(router: Router) -> Router:
    """Copy of the router in the form of the file: layer by layer, and labels with the strong model first."""
    featurizer, params, models = cast(TokenFeaturizer, router.featurizer), router.variables["params"], router.models
    module = cast(BertRouter, router.module)
    if module.encoder.scan_layers:
        encoder = module.encoder.clone(scan_layers=False, parent=None)
        featurizer = dataclasses.replace(featurizer, encoder=encoder)
        module = module.clone(encoder=encoder, parent=None)
        params = {**params, "encoder": unstack_layers(params["encoder"])}
    if _are_labels_reversed(router):
        classifier = jax.tree.map(lambda leaf: leaf[..., ::-1], params["classifier"])
        params, models = {**params, "classifier": classifier}, models[::-1]
    return dataclasses.replace(
        router, module=module, featurizer=featurizer, models=models, variables={"params": params}
    )


def _are_labels_reversed(router: Router) -> bool:
    """Return True if the logits are (weak wins, tie, strong wins): a training run sorts its models by name."""
    return router.likelihood.is_of_one_pair and router.strong == router.models[1]


def _tokenizer_files(featurizer: TokenFeaturizer) -> dict[str, bytes]:
    """The tokenizer's own files, told which tokens the router reads; the resolved one where nothing configures it."""
    reads = {"model_max_length": featurizer.max_length, "truncation_side": featurizer.truncation}
    files = {name: content for name, content in featurizer.files.items() if name != RESOLVED_FILE}
    described = featurizer.tokenizer_config
    if described:
        is_told = all(described.get(name) == value for name, value in reads.items())
        return files if is_told else {**files, TOKENIZER_CONFIG: _json_bytes({**described, **reads})}
    tokenizer = featurizer.tokenizer
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.tokenizer.id_to_token(featurizer.encoder.padding_id),
        **reads,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {**files, TOKENIZER_FILE: tokenizer.tokenizer_json, TOKENIZER_CONFIG: _json_bytes(config)}


def _scores(router: Router, query: Sequence[str]) -> np.ndarray:
    """Scores, in the order of the file, and outcome probabilities, in which alone a tie's logit is."""
    prompts = query[-NUM_COMPARED:]
    scores = router.scores(prompts)
    ordered = scores[:, ::-1] if _are_labels_reversed(router) else scores
    return np.concatenate([ordered, router.outcome_prob(prompts)], axis=1)


def _json_bytes(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
