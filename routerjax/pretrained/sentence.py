"""Folders of sentence-transformers: the modules that make an embedding of a text, and where each lies."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from routerjax.errors import InputError
from routerjax.pretrained.files import find_file, read_json
from routerjax.pretrained.weights import TensorNames

logger = logging.getLogger(__name__)

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
# Of the Transformer module; the library looks for them in this order.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# Old keys -> the mode that they switch on, in the order in which modes are concatenated.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
# What the library has in place of what is computed here; each other value is refused by name.
TRANSFORMER_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "transformer_task": (None, "feature-extraction"),
    "module_output_name": (None, "token_embeddings"),
    "modality_config": (None, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}),
    **dict.fromkeys(
        ("processing_kwargs", "processor_kwargs", "tokenizer_args", "config_kwargs", "config_args"), (None, {})
    ),
}
LAYER_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "module_input_name": (None, "sentence_embedding"),
    "module_output_name": (None, "sentence_embedding"),
    "use_residual": (None, False),
}

LayerKind = Literal["projection", "layer_norm", "normalize"]
LAYER_TENSORS: Mapping[LayerKind, TensorNames] = {
    "projection": TensorNames({"linear.weight": "linear/kernel", "linear.bias": "linear/bias"}),
    "layer_norm": TensorNames({"norm.weight": "norm/scale", "norm.bias": "norm/bias"}),
}
"""Tensors of those layers that have any."""


@dataclass(frozen=True, kw_only=True)
class SentenceLayer:
    """A layer after the pooling.

    Attributes:
        kind: a name in :data:`routerjax.models.EMBEDDING_LAYERS`.
        attributes: of that linen module.
        folder: where its tensors lie, if it has any.
    """

    kind: LayerKind
    attributes: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class SentenceModules:
    """Modules of a sentence encoder.

    Attributes:
        transformer: folder of the encoder and its tokenizer.
        pooling: the modes that make one vector of the hidden states, concatenated.
        layers: applied to that vector, in this order.
        lowercase: lower the text's case before the tokenizer's own normalisation.
        prefix: put before each text: the library's default prompt.
        max_length: tokens that the library reads of a text; None where the files do not say.
    """

    transformer: Path
    pooling: tuple[str, ...] = ("mean",)
    layers: tuple[SentenceLayer, ...] = ()
    lowercase: bool = False
    prefix: str = ""
    max_length: int | None = None


def transformer_folder(folder: Path) -> Path:
    """The folder of the encoder itself, which ``modules.json`` names if there is one.

    Raises:
        InputError: a damaged ``modules.json``.
    """
    paths = [path for name, path in list_modules(folder) if name == "Transformer"]
    return paths[0] if paths else folder


def read_sentence_modules(folder: Path, *, chooses_pooling: bool = False) -> SentenceModules:
    """Read what ``modules.json`` and the files that it names say, in the spelling of any version.

    A folder without ``modules.json`` is a plain encoder, of which the library too takes the mean of the hidden states;
    that is logged, unless the caller chooses another pooling.

    Raises:
        InputError: files missing or damaged, or a module, a setting or an order of modules that is not computed here.
    """
    modules = list_modules(folder)
    if not modules:
        pooling = sorted(folder.glob("*_Pooling/config.json"))
        if pooling:
            raise InputError(f"{folder} has {pooling[0].relative_to(folder)} but no {MODULES_FILE}: get it whole")
        if not chooses_pooling:
            logger.info("%s has no %s: its embeddings are the mean of the hidden states", folder, MODULES_FILE)
        return SentenceModules(transformer=folder)
    names = [name for name, _ in modules]
    for name in names:
        if name not in ("Transformer", "Pooling", *LAYERS):
            raise InputError(
                f"{folder / MODULES_FILE}: a module of type {name} is not computed here; Transformer, Pooling, "
                f"{', '.join(LAYERS)} are"
            )
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= set(LAYERS):
        raise InputError(
            f"{folder / MODULES_FILE} must begin with one Transformer and one Pooling module, got {', '.join(names)}"
        )
    settings = _transformer_settings(modules[0][1])
    pooling, includes_prompt = _pooling(modules[1][1])
    prefix = _prefix(folder)
    if prefix and not includes_prompt:
        raise InputError(f"{modules[1][1]}: a pooling that leaves the prompt {prefix!r} out is not computed here")
    return SentenceModules(
        transformer=modules[0][1],
        pooling=pooling,
        layers=tuple(LAYERS[name](path) for name, path in modules[2:]),
        lowercase=_typed(settings, "do_lower_case", bool, modules[0][1]) or False,
        prefix=prefix,
        max_length=_typed(settings, "max_seq_length", int, modules[0][1]),
    )


def list_modules(folder: Path) -> list[tuple[str, Path]]:
    """The name of each module's class, which is its whole type where it is not the library's own, and its folder.

    Raises:
        InputError: a damaged ``modules.json``.
    """
    path = folder / MODULES_FILE
    if find_file(path) is None:
        return []
    modules = []
    for module in read_json(path, list):
        kind, where = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(where, str):
            raise InputError(f"{path}: each module must have a type and a path, got {str(module)[:200]}")
        # A link to another folder would bring out files of the user's; see find_file.
        if "\0" in where or not (folder / where).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path}: a module's path must lie in the folder, got {where!r}")
        package, _, name = kind.rpartition(".")
        modules.append((name if package.split(".")[0] == "sentence_transformers" else kind, folder / where))
    if not modules:
        raise InputError(f"{path} names no modules")
    return modules


def _transformer_settings(folder: Path) -> dict[str, Any]:
    for name in TRANSFORMER_FILES:
        settings = _settings(folder / name)
        if settings:
            _require(settings, TRANSFORMER_SETTINGS, folder / name)
            for key in ("model_kwargs", "model_args"):
                if settings.get(key):
                    what = json.dumps(settings[key])
                    logger.info("%s: %s %s is not followed: weights are read as float32", folder / name, key, what)
            return settings
    return {}


def _pooling(folder: Path) -> tuple[tuple[str, ...], bool]:
    """The modes, and if the prompt's tokens count."""
    path = folder / "config.json"
    config = read_json(path, dict)
    switched_on = [mode for key, mode in POOLING_KEYS.items() if config.get(key)]
    modes = config.get("pooling_mode", switched_on or "mean")
    modes = [modes] if isinstance(modes, str) else modes
    unknown = sorted(key for key in config if key.startswith("pooling_mode_") and key not in POOLING_KEYS)
    if not isinstance(modes, list) or not modes or not set(map(str, modes)) <= set(POOLING_KEYS.values()) or unknown:
        known = ", ".join(POOLING_KEYS.values())
        raise InputError(f"{path}: pooling must be by {known}, got {', '.join(map(str, unknown)) or modes!r}")
    return tuple(modes), _typed(config, "include_prompt", bool, path) is not False


def _projection(folder: Path) -> SentenceLayer:
    path = folder / "config.json"
    config = read_json(path, dict)
    _require(config, LAYER_SETTINGS, path)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in tuple(ACTIVATIONS):  # a mapping would hash it, and it may be anything
        raise InputError(f"{path}: activation_function must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    features = _typed(config, "out_features", int, path)
    if features is None or features < 1:
        raise InputError(f"{path}: out_features must be a positive number, got {features!r}")
    use_bias = _typed(config, "bias", bool, path) is not False
    attributes = {"features": features, "activation": ACTIVATIONS[activation], "use_bias": use_bias}
    return SentenceLayer(kind="projection", attributes=attributes, folder=folder)


def _layer_norm(folder: Path) -> SentenceLayer:
    read_json(folder / "config.json", dict)
    return SentenceLayer(kind="layer_norm", attributes={}, folder=folder)


def _normalize(folder: Path) -> SentenceLayer:
    path = folder / "config.json"
    _require(_settings(path), LAYER_SETTINGS, path)  # old versions wrote none
    return SentenceLayer(kind="normalize", attributes={}, folder=folder)


LAYERS = {"Dense": _projection, "LayerNorm": _layer_norm, "Normalize": _normalize}


def _prefix(folder: Path) -> str:
    """The prompt that the library puts before each text when it is asked for none."""
    path = folder / SETTINGS_FILE
    settings = _settings(path)
    _require(settings, {"model_type": (None, "SentenceTransformer")}, path)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{path}: prompts must map names to texts, got {str(prompts)[:200]}")
    if default is None:
        named = ", ".join(f"{name} {text!r}" for name, text in prompts.items() if text)
        if named:
            logger.info("%s has prompts that are not put before texts, as none is the default: %s", path, named)
        return ""
    if default not in tuple(prompts):
        named = ", ".join(prompts) or "none"
        raise InputError(f"{path}: default_prompt_name must be one of the prompts ({named}), got {default!r}")
    prefix = prompts[default] or ""
    if prefix:
        logger.info("%s: %r is put before each text", path, prefix)
    return prefix


def _settings(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where there is none."""
    return read_json(path, dict) if find_file(path) is not None else {}


def _require(config: Mapping[str, Any], accepted: Mapping[str, tuple[object, ...]], path: Path) -> None:
    for key, values in accepted.items():
        if config.get(key) not in values:
            raise InputError(f"{path}: {key} must be {values[-1]!r}, got {str(config[key])[:200]!r}")


def _typed(config: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = config.get(key)
    if value is not None and type(value) is not kind:
        raise InputError(f"{path}: {key} must be of type {kind.__name__}, got {str(value)[:200]!r}")
    return value
