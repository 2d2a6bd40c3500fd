"""Prompt-to-Leaderboard: a decoder whose last token's hidden state gives every model a score, read and written."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax.numpy as jnp
import numpy as np

from routerjax.config import Count
from routerjax.errors import InputError, choose
from routerjax.families import CAUSAL
from routerjax.features import UNREACHABLE, Embeddings, TokenFeaturizer, cls_token, with_cls
from routerjax.formats.decoder_folder import (
    decoder_config,
    linear_tensors,
    load_decoder_tokens,
    merged,
    read_tensors,
    unless_whole,
    write_weights,
)
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.golden import compare_scores
from routerjax.formats.hf_settings import unless_threshold, warn_of_threshold
from routerjax.formats.tokenizer_folder import json_bytes, tokenizer_files
from routerjax.likelihoods import make_likelihood
from routerjax.models import CausalRouter
from routerjax.policies import Threshold
from routerjax.pretrained import (
    find_file,
    locate,
    read_chat_template,
    read_json,
    weights_sha256,
)
from routerjax.router import Router
from routerjax.typing import PyTree
from routerjax.validation import coerce

MODELS_FILE, TRAINING_FILE = "model_list.json", "training_config.json"
LOSSES = {
    "bt": "bradley_terry",
    "bt-tie": "bradley_terry",
    "bt_tie": "bradley_terry",
    "rk": "rao_kupper_by_prompt",
    "bag": "grounded_rao_kupper",
}
"""``loss_type`` of its training -> our likelihood; the first of a likelihood is written."""
LAYERS = {"models": "head", "tie": "eta_head"}


@dataclass(frozen=True, kw_only=True)
class PromptToLeaderboard(ReadableFormat, WritableFormat):
    """A folder of P2L: tensors ``model.*`` and ``head.*``, ``model_list.json`` with the columns, CLS as the last token.

    A text is the chat template's user turn without the beginning of an answer, and the CLS token. A prompt that spells
    this token has ``<cls>`` in its place. A long prompt loses its beginning, and never the turn around it, where P2L's
    code cuts the whole text. The folder says nothing of pairs and thresholds. What was imported and not trained gives
    back the tensors bit for bit.

    Attributes:
        loss: its training's ``loss_type``, where no ``training_config.json`` says it: bt, bt-tie, rk, or bag for the
            grounded form.

    Reference:
        Frick et al., "Prompt-to-Leaderboard" (arXiv 2502.14855), and its code.
    """

    name = "p2l"
    compared = "scores"

    loss: str | None = None

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read a router of all models of its list.

        Args:
            source: a folder, or a Hugging Face name.
            strong: a model of its list; must be given, and so must ``weak``.
            weak: likewise.

        Raises:
            InputError: no such source, damaged, no pair of models named, a loss that is not computed here or is named
                nowhere.
        """
        folder = locate(source)
        models = tuple(read_json(folder / MODELS_FILE, list))
        if not all(isinstance(name, str) for name in models):
            raise InputError(f"{folder / MODELS_FILE} must list names of models, got {str(models)[:80]}")
        if strong is None or weak is None:
            raise InputError(
                f"{source} routes between {len(models)} models and names no pair: give --strong and --weak"
            )
        training = read_json(folder / TRAINING_FILE, dict) if find_file(folder / TRAINING_FILE) else {}
        loss = training.get("loss_type", self.loss)
        if self.loss not in (None, loss):
            raise InputError(f"{folder / TRAINING_FILE}: loss_type is {loss!r}, but the option loss is {self.loss!r}")
        if loss is None:
            raise InputError(
                f"{source} has no {TRAINING_FILE} that says its loss_type: give --set loss=NAME, one of "
                f"{', '.join(LOSSES)}; a name of the folder often says it"
            )
        likelihood = make_likelihood(choose(str(loss), LOSSES, f"{source}: loss_type"))
        turns = [{"role": "user", "content": "{prompt}"}]
        template = read_chat_template(folder, turns, add_generation_prompt=False)
        featurizer = dataclasses.replace(with_cls(load_decoder_tokens(source), template), truncation="left")
        length = coerce(training.get("max_length"), Count | None, f"{folder / TRAINING_FILE}: max_length")
        if length is not None:
            featurizer = dataclasses.replace(featurizer, max_length=min(length, featurizer.encoder.max_length))
        outputs = len(likelihood.output_names(models))
        module = CAUSAL.make_module(num_outputs=outputs, attributes={"head": "linear"}, featurizer=featurizer)
        kernel = np.zeros((featurizer.width, outputs), np.float32)
        layers = _split({"kernel": kernel, "bias": kernel[0]}, len(models))
        read = read_tensors(folder, module, _names(layers), layers)
        joined = {part: jnp.concatenate([read[name][part] for name in layers], axis=-1) for part in ("kernel", "bias")}
        return Router(
            module=module,
            featurizer=featurizer,
            models=models,
            policy=Threshold(strong, weak),
            likelihood=likelihood,
            variables={"params": {"encoder": read["encoder"], "classifier": joined}},
            provenance={"sha256": weights_sha256(folder)},
        )

    def unmet(self, router: Router) -> Iterator[str]:
        """Refuse all but a linear head on a CLS token, under a likelihood that P2L has."""
        module = router.module
        if not isinstance(module, CausalRouter) or module.head != "linear":
            got = f"head={module.head!r}" if isinstance(module, CausalRouter) else f"one of {router.family}"
            yield f"p2l holds a causal router with head='linear', got {got}"
            if not isinstance(module, CausalRouter):
                return
        if router.likelihood.name not in LOSSES.values():
            losses = ", ".join(dict.fromkeys(LOSSES.values()))
            yield f"p2l holds the losses {losses}, got {router.likelihood.name}"
        elif router.likelihood.readout != "half_tie":
            got = router.likelihood.readout
            yield f"p2l does not say how ties count: set router.readout=half_tie, got {got}"
        if "calibration" in router.variables:
            yield "p2l has no place for a calibration: export the router without it"
        yield from unless_threshold(router.policy)
        yield from unless_whole(router)
        featurizer = cast(TokenFeaturizer, router.featurizer)
        try:
            cls = cls_token(featurizer)
        except InputError as error:
            yield str(error)
            return
        if not featurizer.template.suffix.endswith((cls, cls + UNREACHABLE)) or featurizer.truncation != "left":
            yield (
                f"p2l reads a score at the token {cls!r} at the end of each text, and keeps the end of a long prompt: "
                "train with features.template and features.truncation=left that say so"
            )

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the configuration, the weights, the columns and the tokenizer's files."""
        del query
        plain = merged(router)
        featurizer = cast(TokenFeaturizer, plain.featurizer)
        loss = next(theirs for theirs, ours in LOSSES.items() if ours == plain.likelihood.name)
        warn_of_threshold(router, self.name)
        layers = _split(plain.variables["params"]["classifier"], len(plain.models))
        tensors = linear_tensors(plain, layers, _names(layers))
        files = {
            **tokenizer_files(featurizer, as_published=True),
            "config.json": json_bytes(decoder_config(plain, class_name="P2LModel")),
            MODELS_FILE: (json.dumps(list(plain.models), indent=2) + "\n").encode(),
            TRAINING_FILE: json_bytes({"loss_type": loss, "max_length": featurizer.max_length}),
        }
        write_weights(folder, tensors)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Read the folder, and compare scores."""
        written = self.read(folder, strong=router.strong, weak=router.weak)
        return {"model.safetensors": compare_scores(router, written, cast(Sequence[str], query))}

    def usage(self, router: Router, path: Path) -> str:
        """The program that loads it, and what it does not hold."""
        return f"P2L's code loads it; it says nothing of a pair ({router.strong}, {router.weak}) or a threshold"


def _names(layers: PyTree) -> dict[str, str]:
    """Published name -> path of each tensor of the head."""
    return {
        f"head.{theirs}.{kind}": f"{ours}/{part}"
        for ours, theirs in LAYERS.items()
        if ours in layers
        for kind, part in (("weight", "kernel"), ("bias", "bias"))
    }


def _split(classifier: PyTree, count: int) -> PyTree:
    """The classifier as P2L has it: a layer for the models, and one for what all share."""
    kernel = np.asarray(classifier["kernel"])
    bias = np.asarray(classifier.get("bias", np.zeros(kernel.shape[1], np.float32)))
    parts = {"models": slice(count), "tie": slice(count, None)}
    split = {name: {"kernel": kernel[:, part], "bias": bias[part]} for name, part in parts.items()}
    return {name: layer for name, layer in split.items() if layer["bias"].size}
