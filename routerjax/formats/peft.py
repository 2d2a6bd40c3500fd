"""PEFT's format: the low-rank adapters and the head of a router, without the weights that they are added to."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.config import Count, Positive
from routerjax.errors import InputError
from routerjax.families import CAUSAL, pretrained_variables
from routerjax.features import Embeddings, TokenFeaturizer, configured_length, ends_in_cls
from routerjax.formats.decoder_folder import label_tokens, load_decoder_tokens, unless_no_bias, unless_whole
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.golden import compare_scores
from routerjax.formats.hf_settings import unless_threshold, warn_of_threshold
from routerjax.formats.tokenizer_folder import json_bytes, padding_token, tokenizer_files
from routerjax.likelihoods import BRADLEY_TERRY, BradleyTerry
from routerjax.models import FROZEN, CausalRouter, Decoder, DecoderConfig
from routerjax.policies import Threshold
from routerjax.pretrained import (
    TARGET_MODULES,
    TOKENIZER_CONFIG,
    TensorNames,
    adapter_names,
    file_sha256,
    find_file,
    locate,
    publish_weights,
    read_json,
    read_weights,
    tensor_bytes,
    tensor_shapes,
)
from routerjax.router import Router
from routerjax.typing import PyTree
from routerjax.validation import coerce

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WITH_LINEAR_HEAD, WITH_LABELS = "SEQ_CLS", "CAUSAL_LM"
"""Tasks of PEFT."""
PREFIX = "base_model.model"
SCORE = f"{PREFIX}.score.weight"
INPUT, OUTPUT = "embed_tokens", "lm_head"
TABLES = {INPUT: f"{PREFIX}.model.{INPUT}", OUTPUT: f"{PREFIX}.{OUTPUT}"}
"""Token tables of a language model."""
PLAIN = {"bias": "none", "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False}
"""Settings that are computed here at these values alone."""
READ = ("base_model_name_or_path", "target_modules", "r", "lora_alpha", "use_rslora", "init_lora_weights")
WITHOUT_SCORES = (
    *("auto_mapping", "peft_version", "inference_mode", "lora_dropout", "modules_to_save", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
)
"""Settings that change no score: of training, of how adapters began, or of what another setting switches on."""
OF_LABELS = ("trainable_token_indices", "ensure_weight_tying")
"""Settings of label tokens; the second changes nothing where all tables have the same trainable rows."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base as it is."""


@dataclass(frozen=True, kw_only=True)
class PeftAdapters(ReadableFormat, WritableFormat):
    """A folder that ``PeftModel.from_pretrained`` puts on the base.

    It has the adapters and the head of a causal router; the base is the folder that its encoder came from. It says
    nothing of models, pairs, thresholds and texts. A linear head is that of ``AutoModelForSequenceClassification``
    (task SEQ_CLS). Label tokens are rows of ``AutoModelForCausalLM`` after the base's vocabulary (task CAUSAL_LM,
    ``trainable_token_indices``), and these rows alone are written: of the output layer, or of the token table where
    that is the output layer. The tokenizer beside them has the label tokens, so that ``AutoPeftModelForCausalLM``
    resizes the base by itself, and says how many tokens of a text are read. A CLS token that a linear head reads is
    such a row of the token table, with its tokenizer; what has one is written, and not read.

    Attributes:
        models: names of the scores; default the strong and the weak model.
    """

    name = "peft"
    compared = "scores"

    models: tuple[str, ...] = ()

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read the adapters of a classifier or of a language model with label tokens, and the base that they name.

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
        for key, value in {"peft_type": "LORA", **PLAIN}.items():
            if config.get(key, value) not in (value, None):
                raise InputError(f"{folder / CONFIG}: {key} must be {value!r}, got {config[key]!r:.80}")
        task = coerce(config.get("task_type") or WITH_LINEAR_HEAD, str, f"{folder / CONFIG}: task_type")
        if task not in (WITH_LINEAR_HEAD, WITH_LABELS):
            raise InputError(
                f"{folder / CONFIG}: task_type must be {WITH_LINEAR_HEAD} or {WITH_LABELS}, got {task!r:.80}"
            )
        is_labelled = task == WITH_LABELS
        known = {"peft_type", "task_type", *PLAIN, *READ, *WITHOUT_SCORES, *(OF_LABELS if is_labelled else ())}
        others = [
            key
            for key, value in config.items()
            if key not in known and not (value is None or value is False or value in ([], {}))  # but 0 == False
        ]
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
            "lora_rank": coerce(config.get("r"), Count, f"{where}r"),
            "lora_alpha": coerce(config.get("lora_alpha"), Positive, f"{where}lora_alpha"),
            "lora_rank_stabilized": coerce(config.get("use_rslora") or False, bool, f"{where}use_rslora"),
            "lora_targets": tuple(ours for theirs, ours in TARGET_MODULES.items() if theirs in modules),
        }
        featurizer = _cut_as_beside(folder, load_decoder_tokens(base, chosen))
        models = self.models or (strong, weak)
        decoder = cast(Decoder, featurizer.encoder).config
        table = _label_table(config, decoder, len(models), where) if is_labelled else None
        if not is_labelled:
            _require_names(folder / WEIGHTS, models)
        return _load(folder, featurizer, models, Threshold(strong, weak), table)

    def unmet(self, router: Router) -> Iterator[str]:
        """Refuse all but adapters under label tokens, or under a linear head without a bias."""
        module = router.module
        if not isinstance(module, CausalRouter) or not module.encoder.config.lora_rank:
            yield "peft holds low-rank adapters of a causal router (features.encoder_attributes.lora_rank)"
        if not isinstance(module, CausalRouter):
            return
        featurizer = cast(TokenFeaturizer, router.featurizer)
        if module.encoder.config.added_tokens and not _has_cls(module, featurizer):
            yield "peft's adapters are on the base's own vocabulary, and the router's encoder has tokens more"
        has_tokenizer = module.head != "linear" or _has_cls(module, featurizer)
        if has_tokenizer and featurizer.truncation == "middle":
            yield "transformers cannot leave out the middle of a text, as this router does (truncation)"
        yield from unless_no_bias(router, "classifiers of peft")
        if not isinstance(router.likelihood, BradleyTerry):
            loss = router.likelihood.name
            yield f"peft has a place for scores of models alone: for no other loss than bradley_terry, got {loss}"
        if "calibration" in router.variables:
            yield "peft has no place for a calibration: export the router without it"
        yield from unless_threshold(router.policy)
        yield from unless_whole(router)

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the configuration and the weights, and of label tokens the tokenizer that has them."""
        del query
        warn_of_threshold(router, self.name)
        module, params = cast(CausalRouter, router.module), router.variables["params"]
        decoder, featurizer = module.encoder.config, cast(TokenFeaturizer, router.featurizer)
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": featurizer.source,
            "r": decoder.lora_rank,
            "lora_alpha": decoder.lora_alpha,
            "lora_dropout": 0.0,
            "use_rslora": decoder.lora_rank_stabilized,
            "target_modules": [theirs for theirs, ours in TARGET_MODULES.items() if ours in decoder.lora_targets],
            "inference_mode": True,
            **PLAIN,
        }
        head: PyTree
        table = _table_of_labels(module)
        added: list[str] | None = label_tokens(router.models)
        if table is None:
            settings |= {"task_type": WITH_LINEAR_HEAD, "modules_to_save": ["classifier", "score"]}
            head = {"classifier": {"kernel": params["classifier"]["kernel"]}}
            added = [] if _has_cls(module, featurizer) else None
            if added is not None:
                settings["trainable_token_indices"] = list(_label_rows(decoder, 1))
                head["added_embedding"] = params["encoder"]["added_embedding"]
        else:
            rows = list(_label_rows(decoder, len(router.models)))
            # A list is of the token table, and of the output layer that is tied to it.
            indices = rows if table == INPUT else {table: rows}
            settings |= {"task_type": WITH_LABELS, "modules_to_save": None, "trainable_token_indices": indices}
            head = {"label_embedding": params["label_embedding"]}
        if added is not None:
            _, pad_token = padding_token(featurizer)
            files = tokenizer_files(featurizer, pad_token=pad_token, added=added)
            for name, content in files.items():
                (folder / name).write_bytes(content)
        tree = {"layers": _adapters(params["encoder"], decoder), **head}
        names = adapter_names(decoder.lora_targets, _head_names(table, "added_embedding" in head))
        (folder / CONFIG).write_bytes(json_bytes(settings))
        (folder / WEIGHTS).write_bytes(tensor_bytes(publish_weights(tree, names), {"format": "pt"}))

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Read the folder on the router's base, and compare scores."""
        featurizer = cast(TokenFeaturizer, router.featurizer)
        table = _table_of_labels(cast(CausalRouter, router.module))
        written = _load(folder, featurizer, router.models, cast(Threshold, router.policy), table)
        return {WEIGHTS: compare_scores(router, written, cast(Sequence[str], query))}

    def usage(self, router: Router, path: Path) -> str:
        """The class of PEFT that loads it."""
        featurizer = cast(TokenFeaturizer, router.featurizer)
        labels, text = ", ".join(router.models), featurizer.template.render("PROMPT")
        keeps = {"left": "last", "right": "first"}.get(featurizer.truncation, "first and last")
        settings = f"num_labels={len(router.models)}, pad_token_id={padding_token(featurizer)[0]}"
        loads = (
            f"PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained({featurizer.source!r}, "
            f"{settings}), {str(path)!r})"
        )
        module = cast(CausalRouter, router.module)
        if _has_cls(module, featurizer):
            loads = f"AutoPeftModelForSequenceClassification.from_pretrained({str(path)!r}, {settings})"
        elif _table_of_labels(module) is not None:
            loads = f"AutoPeftModelForCausalLM.from_pretrained({str(path)!r})"
            labels = f"the logits of the last {len(router.models)} tokens after the last token: {labels}"
        return (
            f"{loads} loads it; its labels are {labels}, and its texts {text!r}, of which it reads "
            f"the {keeps} {featurizer.max_length} tokens"
        )


def _has_cls(module: CausalRouter, featurizer: TokenFeaturizer) -> bool:
    """Return True for a CLS token after the base's vocabulary, under a linear head."""
    return module.encoder.config.added_tokens == 1 and module.head == "linear" and ends_in_cls(featurizer)


def _adapters(encoder: PyTree, decoder: DecoderConfig) -> PyTree:
    """Matrices of the adapters of a decoder's parameters, named so that they are transposed as kernels are."""
    layers = encoder["layers"]
    return {
        name: {part: {"kernel": layers[name][part]} for part in ("lora_a", "lora_b")} for name in decoder.lora_targets
    }


def _cut_as_beside(folder: Path, featurizer: TokenFeaturizer) -> TokenFeaturizer:
    """Copy of the base's featurizer that cuts texts as a tokenizer beside the adapters says, if there is one."""
    if find_file(folder / TOKENIZER_CONFIG) is None:
        return featurizer
    described = read_json(folder / TOKENIZER_CONFIG, dict)
    side = described.get("truncation_side", featurizer.truncation)
    if side != featurizer.truncation and side not in ("left", "right"):
        raise InputError(f"{folder / TOKENIZER_CONFIG}: truncation_side must be left or right, got {side!r:.40}")
    length = configured_length(described, featurizer.max_length, most=featurizer.encoder.max_length)
    return dataclasses.replace(featurizer, max_length=length, truncation=side)


def _require_names(weights: Path, models: Sequence[str]) -> None:
    """Refuse another number of names than a linear head has rows."""
    shape = tensor_shapes(weights).get(SCORE, ())
    if len(shape) == 2 and shape[0] != len(models):
        raise InputError(
            f"{weights} scores {shape[0]} models, and {len(models)} are named ({', '.join(models)}): name all, in the "
            'order of its rows, by --set models=["NAME", ...]'
        )


def _label_rows(decoder: DecoderConfig, count: int) -> range:
    """Token ids of the labels, or of a CLS token, after the vocabulary."""
    return range(decoder.vocab_size, decoder.vocab_size + count)


def _table_of_labels(module: CausalRouter) -> str | None:
    """The table whose rows are the label tokens; None for a linear head."""
    if module.head == "linear":
        return None
    return INPUT if module.encoder.config.tie_embeddings else OUTPUT


def _label_table(config: Mapping[str, Any], decoder: DecoderConfig, count: int, where: str) -> str:
    """The table whose trained rows are the label tokens, of a folder's settings."""
    if config.get("modules_to_save"):
        raise InputError(
            f"{where}modules_to_save must be empty where labels are tokens, got {config['modules_to_save']!r:.80}: "
            "train the rows of the labels alone (trainable_token_indices)"
        )
    indices = config.get("trainable_token_indices")
    tables = indices if isinstance(indices, dict) else {INPUT: indices}
    rows, wanted = _label_rows(decoder, count), (INPUT, OUTPUT) if decoder.tie_embeddings else (OUTPUT,)
    table = next((name for name in wanted if name in tables), None)
    if table is None or not set(tables) <= set(TABLES) or any(each != list(rows) for each in tables.values()):
        raise InputError(
            f"{where}trainable_token_indices must be tokens {rows[0]} to {rows[-1]} of {' or '.join(wanted)}, one for "
            f"each of {count} models after the base's vocabulary, got {indices!r:.80}"
        )
    return table


def _head_names(table: str | None, has_cls: bool = False) -> dict[str, str]:
    """Published name -> path of the head: a linear one, perhaps with the row of a CLS token, or rows of a table."""
    if table is None:
        return {SCORE: "classifier/kernel", **({f"{TABLES[INPUT]}.{_ROWS}": "added_embedding"} if has_cls else {})}
    return {f"{TABLES[table]}.{_ROWS}": "label_embedding"}


# PEFT saves whole tables beside their trained rows where it sees that the base was resized.
_ROWS, _WHOLE = "token_adapter.trainable_tokens_delta", ("weight", "token_adapter.base_layer.weight")


def _require_same_tokens(weights: Path, decoder: DecoderConfig, base: PyTree) -> None:
    """Refuse a token table, if there is one in the file, whose rows are not those of the base."""
    shapes = tensor_shapes(weights)
    for name in (f"{TABLES[INPUT]}.{whole}" for whole in _WHOLE):
        if name in shapes:
            ignored = [f"(?!{re.escape(name)}$).*"]
            names = TensorNames({name: "table"}, ignored=ignored)
            shape = jax.ShapeDtypeStruct(shapes[name], decoder.param_dtype)
            table = read_weights(weights, names, {"table": shape})["table"]
            if not np.array_equal(table[: decoder.vocab_size], np.asarray(base)):
                raise InputError(f"{weights}: {name} is not the base's, and the token table is not trained here")


def _load(
    folder: Path, featurizer: TokenFeaturizer, models: tuple[str, ...], policy: Threshold, table: str | None
) -> Router:
    attributes = {"head": "linear", "use_bias": False} if table is None else {"head": "tokens"}
    module = cast(
        CausalRouter, CAUSAL.make_module(num_outputs=len(models), attributes=attributes, featurizer=featurizer)
    )
    decoder = module.encoder.config
    variables = pretrained_variables(module, locate(featurizer.source), jax.random.key(0))
    params = variables["params"]
    has_cls = _has_cls(module, featurizer)
    names = adapter_names(decoder.lora_targets, _head_names(table, has_cls))
    if table is not None:
        _require_same_tokens(folder / WEIGHTS, decoder, variables[FROZEN]["encoder"]["token_embedding"])
        # No prompt has label tokens, so that their rows as inputs count for nothing; nor do other rows of the output.
        unread = [f"{name}.{whole}" for name in TABLES.values() for whole in (*_WHOLE, _ROWS)]
        names = dataclasses.replace(names, ignored=[re.escape(name) for name in unread if name not in names.table])
        left_out = sorted(({*unread} - {*names.table}) & {*tensor_shapes(folder / WEIGHTS)})
        if left_out:
            logger.info("%s: not read, no score depends on them: %s", folder / WEIGHTS, ", ".join(left_out))
    row = {"added_embedding": params["encoder"]["added_embedding"]} if has_cls else {}
    head = {name: leaf for name, leaf in params.items() if name != "encoder"}
    read = read_weights(folder / WEIGHTS, names, {"layers": _adapters(params["encoder"], decoder), **head, **row})
    layers = {
        name: {**params["encoder"]["layers"].get(name, {}), **{part: leaf["kernel"] for part, leaf in parts.items()}}
        for name, parts in read["layers"].items()
    }
    encoder = {**params["encoder"], **{name: read[name] for name in row}}
    encoder["layers"] = {**encoder["layers"], **layers}
    merged = {**variables, "params": {**{name: read[name] for name in head}, "encoder": encoder}}
    return Router(
        module=module,
        featurizer=featurizer,
        models=models,
        policy=policy,
        likelihood=BRADLEY_TERRY,
        variables=jax.tree.map(jnp.asarray, merged),
        provenance={"sha256": file_sha256(folder / WEIGHTS)},
    )
