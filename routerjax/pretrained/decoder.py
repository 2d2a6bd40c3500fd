"""Decoders as Hugging Face saves them: configuration and tensor names."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from routerjax.errors import InputError
from routerjax.pretrained.auto_classes import from_pretrained
from routerjax.pretrained.files import read_json
from routerjax.pretrained.weights import TensorNames

# In transformers' words -> ours.
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_ROPE_SCALING: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_PROJECTIONS = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
_SANDWICH_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}
_HEAD_NORMS = {"self_attn.q_norm": "query_norm", "self_attn.k_norm": "key_norm"}
# What an architecture has beyond RMS norms, rotary positions, grouped heads and a gated MLP.
_OF_TYPE: Mapping[str, Mapping[str, object]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3_text": {"qk_norm": True, "sandwich_norms": True, "norm_offset": 1.0, "scale_embeddings": True},
}
_WITH_LAYER_TYPES = ("qwen2", "qwen3", "gemma3_text")
DECODER_TYPES = tuple(_OF_TYPE)
# transformers makes a list of so many items of the number of layers, whatever it is; the largest decoders have 126.
MOST_LAYERS = 1024
HEADS = ("lm_head.weight", "score.weight")
"""Tensors of the layers that transformers puts on top of a decoder."""


def read_decoder(folder: Path) -> dict[str, Any]:
    """Read the fields of a :class:`routerjax.models.DecoderConfig` from a ``config.json``.

    Raises:
        InputError: no such file, damaged, or an architecture, or a setting of one, that is not computed here.
    """
    path = folder / "config.json"
    config = read_json(path, dict)
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int | float) and layers > MOST_LAYERS:
        raise InputError(f"{path}: num_hidden_layers must be at most {MOST_LAYERS}, got {layers!r:.40}")
    content = json.dumps(config).encode()
    return from_pretrained("AutoConfig", {path.name: content}, path, functools.partial(_fields, path))


def _fields(path: Path, config: Any) -> dict[str, Any]:
    if config.model_type not in _OF_TYPE:
        raise InputError(f"{path}: model_type must be one of {', '.join(_OF_TYPE)}, got {config.model_type!r}")
    gate = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    required = {
        gate: tuple(_ACTIVATIONS),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
    }
    for key, values in required.items():
        if getattr(config, key, values[0]) not in values:
            listed = " or ".join(map(repr, values))
            raise InputError(f"{path}: {key} must be {listed}, got {getattr(config, key)!r}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    has_bias = bool(getattr(config, "attention_bias", False))
    return {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_key_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "mlp_dim": config.intermediate_size,
        "max_positions": config.max_position_embeddings,
        "activation": _ACTIVATIONS[getattr(config, gate)],
        "norm_epsilon": config.rms_norm_eps,
        "qkv_bias": has_bias,
        "out_bias": has_bias,
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "attention_scale": (getattr(config, "query_pre_attn_scalar", None) or head_dim) ** -0.5,
        "windows": _windows(config, path),
        "attention_dropout_rate": config.attention_dropout or 0.0,
        "initializer_range": config.initializer_range,
        "tie_embeddings": bool(config.tie_word_embeddings),
        "logit_cap": getattr(config, "final_logit_softcapping", None) or 0.0,
        **_rope(config, path),
        **_OF_TYPE[config.model_type],
    }


def _windows(config: Any, path: Path) -> tuple[int, ...]:
    """Tokens that each layer attends to; 0 for all before it."""
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None)
    if types is None:
        return (window,) * config.num_hidden_layers
    of_type = {"sliding_attention": window, "full_attention": 0}
    unknown = sorted(set(types) - set(of_type))
    if unknown:
        raise InputError(f"{path}: layer_types must be of {', '.join(of_type)}, got {unknown[0]!r}")
    if not window and "sliding_attention" in types:
        raise InputError(f"{path}: layer_types has sliding_attention, and sliding_window no size")
    return tuple(of_type[name] for name in types)


def _rope(config: Any, path: Path) -> dict[str, Any]:
    parameters = config.rope_parameters
    local = parameters.get("sliding_attention")
    everywhere = parameters.get("full_attention", parameters)
    for rope, known in ((everywhere, tuple(_ROPE_SCALING)), (local or {"rope_type": "default"}, ("default",))):
        if rope["rope_type"] not in known or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise InputError(f"{path}: rope_type must be one of {', '.join(known)}, of whole heads, got {rope}")
    return {
        "rope_base": everywhere["rope_theta"],
        "rope_scaling": tuple(float(everywhere[key]) for key in _ROPE_SCALING[everywhere["rope_type"]]),
        "rope_local_base": 0.0 if local is None else local["rope_theta"],
    }


def decoder_class(model_type: str, task: Literal["CausalLM", "SequenceClassification"]) -> str:
    """Name of the class of transformers that holds a decoder with a head."""
    special = {("gemma3_text", "CausalLM"): "Gemma3", ("gemma3_text", "SequenceClassification"): "Gemma3Text"}
    return f"{special.get((model_type, task), model_type.capitalize())}For{task}"


def decoder_json(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a decoder, as transformers reads it: the inverse of :func:`read_decoder`.

    Args:
        decoder: fields of a :class:`routerjax.models.DecoderConfig`; added tokens count as rows of the vocabulary.
    """
    windows, model_type = tuple(decoder["windows"]), decoder["model_type"]
    is_gemma = bool(decoder["scale_embeddings"])
    kinds = {name: kind for kind, name in _ACTIVATIONS.items()}
    rope = _rope_json(decoder["rope_base"], tuple(decoder["rope_scaling"]))
    if decoder["rope_local_base"]:
        local = _rope_json(decoder["rope_local_base"], ())
        rope = {"full_attention": rope, "sliding_attention": local}
    window: dict[str, Any] = {"sliding_window": max(windows) or None}
    if model_type in _WITH_LAYER_TYPES:
        window |= {"layer_types": ["sliding_attention" if each else "full_attention" for each in windows]}
        window |= {"use_sliding_window": any(windows)}
    scalar = decoder["attention_scale"] ** -2
    scalar = round(scalar) if round(scalar) ** -0.5 == decoder["attention_scale"] else scalar
    return {
        "model_type": model_type,
        "vocab_size": decoder["vocab_size"] + decoder["added_tokens"],
        "hidden_size": decoder["width"],
        "num_hidden_layers": decoder["num_layers"],
        "num_attention_heads": decoder["num_heads"],
        "num_key_value_heads": decoder["num_key_heads"],
        "head_dim": decoder["head_dim"],
        "intermediate_size": decoder["mlp_dim"],
        "max_position_embeddings": decoder["max_positions"],
        "hidden_activation" if is_gemma else "hidden_act": kinds[decoder["activation"]],
        "rms_norm_eps": decoder["norm_epsilon"],
        "attention_bias": decoder["out_bias"],
        "mlp_bias": decoder["mlp_bias"],
        "attention_dropout": decoder["attention_dropout_rate"],
        "initializer_range": decoder["initializer_range"],
        "tie_word_embeddings": decoder["tie_embeddings"],
        "rope_parameters": rope,
        **window,
        **({"query_pre_attn_scalar": scalar} if is_gemma else {}),
        **({"final_logit_softcapping": decoder["logit_cap"]} if decoder["logit_cap"] else {}),
        "dtype": str(decoder["param_dtype"]),
    }


def _rope_json(base: float, scaling: tuple[float, ...]) -> dict[str, Any]:
    kind = next(name for name, keys in _ROPE_SCALING.items() if len(keys) == len(scaling))
    values = dict(zip(_ROPE_SCALING[kind], scaling, strict=True))
    whole = {key: int(value) for key, value in values.items() if key.startswith("original")}  # as transformers asks
    return {"rope_type": kind, "rope_theta": base, **values, **whole}


def adapter_names(targets: Sequence[str], head: Mapping[str, str]) -> TensorNames:
    """Tensors of PEFT's low-rank adapters -> ``layers/<projection>/lora_a/kernel`` and ``lora_b/kernel``.

    Args:
        targets: our names of the adapted projections.
        head: tensors of a layer on top -> our paths.
    """
    table = dict(head)
    for published, ours in _PROJECTIONS.items():
        if ours in targets:
            for theirs, part in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                table[f"base_model.model.model.layers.{{}}.{published}.{theirs}.weight"] = (
                    f"layers/{ours}/{part}/kernel"
                )
    return TensorNames(table)


TARGET_MODULES = {published.split(".")[1]: ours for published, ours in _PROJECTIONS.items()}
"""Name of a projection in transformers -> ours."""


def decoder_names(
    model_type: str,
    *,
    layers_left_out: Collection[int] = (),
    has_final_norm: bool = True,
    head: Mapping[str, str] | None = None,
) -> TensorNames:
    """Tensors of a causal language model in transformers -> parameters of a module that holds it as ``encoder``.

    Args:
        model_type: as in config.json.
        layers_left_out: numbers of the layers that are not taken.
        has_final_norm: False leaves the norm after the last layer out.
        head: tensors of a layer on top -> our paths. Those of :data:`HEADS` that are not among them are left out.
    """
    sandwich = bool(_OF_TYPE[model_type].get("sandwich_norms"))
    table = {"model.embed_tokens.weight": "encoder/token_embedding", "model.norm.weight": "encoder/final_norm/scale"}
    for published, ours in {**(_SANDWICH_NORMS if sandwich else _NORMS), **_HEAD_NORMS}.items():
        table[f"model.layers.{{}}.{published}.weight"] = f"encoder/layers/{ours}/scale"
    for published, ours in _PROJECTIONS.items():
        for theirs, part in (("weight", "kernel"), ("bias", "bias")):
            table[f"model.layers.{{}}.{published}.{theirs}"] = f"encoder/layers/{ours}/{part}"
    # Checkpoints of the bare model have no prefix.
    aliases = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)
    table |= head or {}
    ignored = [r".*rotary_emb\.inv_freq", *(re.escape(name) for name in HEADS if name not in table)]
    if not has_final_norm:
        del table["model.norm.weight"]
        ignored.append(r"model\.norm\.weight")
    return TensorNames(table, aliases=aliases, ignored=ignored, layers_left_out=layers_left_out)
