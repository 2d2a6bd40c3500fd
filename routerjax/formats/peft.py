"""PEFT's format: the low-rank adapters and the head of a classifier, without the weights that they are added to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from routerjax.errors import InputError
from routerjax.families import CAUSAL, pretrained_variables
from routerjax.features import Embeddings, TokenFeaturizer
from routerjax.formats.decoder_folder import load_decoder_tokens, require_no_bias, require_whole
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.golden import compare_scores
from routerjax.formats.hf_settings import require_threshold_policy, warn_of_threshold
from routerjax.formats.tokenizer_folder import json_bytes, padding_token
from routerjax.likelihoods import BRADLEY_TERRY, BradleyTerry
from routerjax.models import CausalRouter, DecoderConfig
from routerjax.policies import Threshold
from routerjax.pretrained import (
    TARGET_MODULES,
    adapter_names,
    file_sha256,
    locate,
    publish_weights,
    read_json,
    read_weights,
    tensor_bytes,
)
from routerjax.router import Router
from routerjax.typing import PyTree
from routerjax.validation import coerce

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = {"base_model.model.score.weight": "classifier/kernel"}
PLAIN = {"bias": "none", "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False}
"""Settings that are computed here at these values alone."""
READ = ("base_model_name_or_path", "target_modules", "r", "lora_alpha", "use_rslora", "init_lora_weights")
WITHOUT_SCORES = (
    *("auto_mapping", "peft_version", "inference_mode", "lora_dropout", "modules_to_save", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
)
"""Settings that change no score: of training, of how adapters began, or of what another setting switches on."""
PLAIN_STARTS = (True, False, None, "gaussian")
"""Values of ``init_lora_weights`` that leave the base as it is."""


@dataclass(frozen=True, kw_only=True)
class PeftAdapters(ReadableFormat, WritableFormat):
    """A folder that ``PeftModel.from_pretrained`` puts on ``AutoModelForSequenceClassification`` of the base.

    It has the adapters and the head of a causal router; the base is the folder that its encoder came from. It says
    nothing of models, pairs, thresholds and texts.

    Attributes:
        models: names of the head's outputs; default the strong and the weak model.
    """

    name = "peft"
    compared = "scores"

    models: tuple[str, ...] = ()

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read a classifier's adapters, and the base that they name.

        Args:
            source: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
            strong: a model; must be given, and so must ``weak``.
            weak: likewise.

        Raises:
            InputError: no such source, damaged, no base, of another task, or a kind of adapter that is not computed
                here.
        """
        folder = locate(source)
        config = read_json(folder / CONFIG, dict)
        for key, value in {"peft_type": "LORA", "task_type": "SEQ_CLS", **PLAIN}.items():
            if config.get(key, value) not in (value, None):
                raise InputError(f"{folder / CONFIG}: {key} must be {value!r}, got {config[key]!r:.80}")
        known = {"peft_type", "task_type", *PLAIN, *READ, *WITHOUT_SCORES}
        others = [key for key, value in config.items() if key not in known and value not in (None, False, [], {})]
        if others:
            key = others[0]
            raise InputError(f"{folder / CONFIG}: {key} is not computed here, got {config[key]!r:.80}")
        if config.get("init_lora_weights") not in PLAIN_STARTS:
            raise InputError(
                f"{folder / CONFIG}: init_lora_weights must leave the base as it is ({PLAIN_STARTS}), got "
                f"{config['init_lora_weights']!r:.40}"
            )
        if strong is None or weak is None:
            raise InputError(f"{source} names no models: give --strong and --weak, and --set models=[...] if more")
        where = f"{folder / CONFIG}: "
        base = coerce(config.get("base_model_name_or_path"), str, f"{where}base_model_name_or_path")
        modules = coerce(config.get("target_modules"), tuple[str, ...], f"{where}target_modules")
        unknown = sorted(set(modules) - set(TARGET_MODULES))
        if unknown:
            raise InputError(f"{where}target_modules must be of {', '.join(TARGET_MODULES)}, got {unknown[0]!r}")
        chosen: dict[str, Any] = {
            "lora_rank": config.get("r"),
            "lora_alpha": config.get("lora_alpha"),
            "lora_rank_stabilized": coerce(config.get("use_rslora") or False, bool, f"{where}use_rslora"),
            "lora_targets": tuple(ours for theirs, ours in TARGET_MODULES.items() if theirs in modules),
        }
        return _load(folder, load_decoder_tokens(base, chosen), self.models or (strong, weak), Threshold(strong, weak))

    def require_form(self, router: Router) -> None:
        """Refuse all but adapters under a linear head without a bias."""
        module = router.module
        if not isinstance(module, CausalRouter) or not module.encoder.config.lora_rank:
            raise InputError("peft holds low-rank adapters of a causal router (features.encoder_attributes.lora_rank)")
        if module.head != "linear":
            raise InputError(
                "peft holds the head of a classifier, which is linear without a bias: train with the router attributes "
                "head='linear' and use_bias=False"
            )
        require_no_bias(router, "classifiers of peft")
        if not isinstance(router.likelihood, BradleyTerry) or "calibration" in router.variables:
            raise InputError("peft has a place for scores of models alone: for no other loss, and no calibration")
        require_threshold_policy(router.policy)
        require_whole(router)

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the configuration and the weights."""
        del query
        warn_of_threshold(router, self.name)
        module, params = cast(CausalRouter, router.module), router.variables["params"]
        decoder = module.encoder.config
        settings = {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": cast(TokenFeaturizer, router.featurizer).source,
            "r": decoder.lora_rank,
            "lora_alpha": decoder.lora_alpha,
            "lora_dropout": 0.0,
            "use_rslora": decoder.lora_rank_stabilized,
            "target_modules": [theirs for theirs, ours in TARGET_MODULES.items() if ours in decoder.lora_targets],
            "modules_to_save": ["classifier", "score"],
            "inference_mode": True,
            **PLAIN,
        }
        tree = {
            "layers": _adapters(params["encoder"], decoder),
            "classifier": {"kernel": params["classifier"]["kernel"]},
        }
        names = adapter_names(decoder.lora_targets, HEAD)
        (folder / CONFIG).write_bytes(json_bytes(settings))
        (folder / WEIGHTS).write_bytes(tensor_bytes(publish_weights(tree, names), {"format": "pt"}))

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Read the folder on the router's base, and compare scores."""
        featurizer = cast(TokenFeaturizer, router.featurizer)
        written = _load(folder, featurizer, router.models, cast(Threshold, router.policy))
        return {WEIGHTS: compare_scores(router, written, cast(Sequence[str], query))}

    def usage(self, router: Router, path: Path) -> str:
        """The class of PEFT that loads it."""
        featurizer = cast(TokenFeaturizer, router.featurizer)
        labels, text = ", ".join(router.models), featurizer.template.render("PROMPT")
        keeps = {"left": "last", "right": "first"}.get(featurizer.truncation, "first and last")
        settings = f"num_labels={len(router.models)}, pad_token_id={padding_token(featurizer)[0]}"
        return (
            f"PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained({featurizer.source!r}, "
            f"{settings}), {str(path)!r}) loads it; its labels are {labels}, and its texts {text!r}, of which it reads "
            f"the {keeps} {featurizer.max_length} tokens"
        )


def _adapters(encoder: PyTree, decoder: DecoderConfig) -> PyTree:
    """Matrices of the adapters of a decoder's parameters, named so that they are transposed as kernels are."""
    layers = encoder["layers"]
    return {
        name: {part: {"kernel": layers[name][part]} for part in ("lora_a", "lora_b")} for name in decoder.lora_targets
    }


def _load(folder: Path, featurizer: TokenFeaturizer, models: tuple[str, ...], policy: Threshold) -> Router:
    attributes = {"head": "linear", "use_bias": False}
    module = cast(
        CausalRouter, CAUSAL.make_module(num_outputs=len(models), attributes=attributes, featurizer=featurizer)
    )
    decoder = module.encoder.config
    variables = pretrained_variables(module, locate(featurizer.source), jax.random.key(0))
    params = variables["params"]
    shapes = {"layers": _adapters(params["encoder"], decoder), "classifier": params["classifier"]}
    names = adapter_names(decoder.lora_targets, HEAD)
    read = read_weights(folder / WEIGHTS, names, shapes)
    layers = {
        name: {**params["encoder"]["layers"].get(name, {}), **{part: leaf["kernel"] for part, leaf in parts.items()}}
        for name, parts in read["layers"].items()
    }
    encoder = {**params["encoder"], "layers": {**params["encoder"]["layers"], **layers}}
    merged = {**variables, "params": {**params, "encoder": encoder, "classifier": read["classifier"]}}
    return Router(
        module=module,
        featurizer=featurizer,
        models=models,
        policy=policy,
        likelihood=BRADLEY_TERRY,
        variables=jax.tree.map(jnp.asarray, merged),
        provenance={"sha256": file_sha256(folder / WEIGHTS)},
    )
