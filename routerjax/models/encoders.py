"""Encoders of text: from a description to the module and back, and the attributes that a run chooses."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from routerjax.config import AttributeValue
from routerjax.errors import InputError, choose, nearest
from routerjax.models.bert_encoder import BertEncoder
from routerjax.models.decoder import Decoder
from routerjax.models.decoder_config import DecoderConfig, DecoderType
from routerjax.models.decoder_layers import PROJECTIONS
from routerjax.typing import Array
from routerjax.validation import coerce, field_types, typed

Encoder: TypeAlias = BertEncoder | Decoder
"""Tokens to hidden states ``[batch, length, width]``."""

# What a run may say of an encoder that it trains; all else is what the encoder's files say.
WHOSE_CHOICES = "features.encoder_attributes"
BERT_CHOICES = ("dropout_rate", "attention_dropout_rate", "dtype", "remat", "scan_layers")
DECODER_CHOICES = (
    *("attention", "attention_dropout_rate", "dtype", "param_dtype", "remat", "remat_policy"),
    *("lora_rank", "lora_alpha", "lora_rank_stabilized", "lora_targets"),
)
DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
_OF_MODULES = ("parent", "name")


def make_encoder(described: Mapping[str, object], whose: str) -> Encoder:
    """Make an encoder of its attributes, among them ``model_type``; an error calls them ``whose.name``.

    Raises:
        InputError: attributes missing or unknown, or a value of another type or out of range.
    """
    is_decoder = described.get("model_type") in typing.get_args(DecoderType)
    types = _types(described.get("model_type"))
    if set(described) - set(types):
        raise InputError(f"{whose} has {', '.join(types)}; got {', '.join(sorted(set(described) - set(types)))}")
    checked = {}
    for name, value in described.items():
        what = f"{whose}.{name}"
        is_dtype = types[name] is jnp.dtype
        checked[name] = choose(str(value), DTYPES, what) if is_dtype else coerce(value, types[name], what)
    try:
        encoder = Decoder(DecoderConfig(**checked)) if is_decoder else BertEncoder(**checked)
    except TypeError as error:  # an attribute without default
        raise InputError(f"{whose} has {', '.join(types)}: {error}") from error
    if isinstance(encoder, Decoder):
        _require_decoder(encoder.config, whose)
    elif encoder.width % encoder.num_heads:
        raise InputError(f"{whose}.num_heads ({encoder.num_heads}) must divide its width ({encoder.width})")
    return encoder


def _require_decoder(config: DecoderConfig, whose: str) -> None:
    unknown = [name for name in config.lora_targets if name not in PROJECTIONS]
    if unknown:
        raise InputError(f"{whose}.lora_targets must be among {', '.join(PROJECTIONS)}, got {unknown[0]!r}")
    if config.lora_rank > config.width:  # more than any matrix of the width has, and maybe than the memory holds
        raise InputError(f"{whose}.lora_rank must be at most the width ({config.width}), got {config.lora_rank}")
    if not config.lora_targets or len(set(config.lora_targets)) != len(config.lora_targets):
        raise InputError(f"{whose}.lora_targets must be one or more different projections, got {config.lora_targets}")
    if config.num_heads % config.num_key_heads:
        raise InputError(f"{whose}.num_key_heads ({config.num_key_heads}) must divide num_heads ({config.num_heads})")
    if len(config.windows) != config.num_layers:
        raise InputError(f"{whose}.windows must have {config.num_layers} items, one for each layer")
    if config.head_dim % 2:
        raise InputError(f"{whose}.head_dim must be even, got {config.head_dim}")
    if config.attention == "cudnn":
        _require_gpu(config, whose)


def _require_gpu(config: DecoderConfig, whose: str) -> None:
    """Refuse what cuDNN's kernel of attention does not compute on the GPUs that are here."""
    if jax.default_backend() != "gpu":
        raise InputError(f"{whose}.attention=cudnn needs an NVIDIA GPU, got {jax.default_backend()}: take plain")
    capability = tuple(map(int, str(jax.local_devices()[0].compute_capability).split(".")))
    if capability < (8, 0):
        raise InputError(f"{whose}.attention=cudnn needs a GPU of compute capability 8.0 or more, got {capability}")
    require_cudnn(config, whose, largest_head=256 if capability >= (9, 0) else 128)


def require_cudnn(config: DecoderConfig, whose: str, *, largest_head: int = 256) -> None:
    """Refuse what cuDNN's kernel of attention does not compute on any GPU, or on one that takes no larger heads.

    Raises:
        InputError: a type, a dropout or a size of heads that it does not compute.
    """
    if config.dtype != DTYPES["bfloat16"]:
        raise InputError(
            f"{whose}.attention=cudnn computes in bfloat16, got {config.dtype}: set {whose}.dtype=bfloat16"
        )
    if config.attention_dropout_rate:
        raise InputError(f"{whose}.attention=cudnn has no dropout, got {config.attention_dropout_rate}")
    if config.head_dim % 8 or config.head_dim > largest_head:
        raise InputError(
            f"{whose}.attention=cudnn takes heads of 8, 16, ... {largest_head} numbers, got {config.head_dim}"
        )


def example_tokens() -> dict[str, Array]:
    """Make a query of one prompt of two tokens; its values do not matter."""
    return {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}


def up_to_layer(described: Mapping[str, Any], layer: int | None, whose: str) -> dict[str, Any]:
    """Attributes of an encoder of the lowest layers alone, whose hidden states are those of the last of them.

    Args:
        described: see :func:`make_encoder`.
        layer: the last; None for all layers.
        whose: what an error calls the layer.

    Raises:
        InputError: the encoder has fewer layers.
    """
    count = described["num_layers"]
    if layer is None or layer == count:
        return dict(described)
    if layer > count:
        raise InputError(f"{whose} must be at most the encoder's {count} layers, got {layer}")
    of_decoder = {"windows": described["windows"][:layer], "final_norm": False} if "windows" in described else {}
    return {**described, "num_layers": layer, **of_decoder}


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """Attributes of an encoder as JSON holds them; the inverse of :func:`make_encoder`."""
    values = {name: getattr(_fields_of(encoder), name) for name in _types(encoder.model_type)}
    return {
        name: str(value) if isinstance(value, jnp.dtype) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def encoder_sizes(encoder: Encoder) -> dict[str, int]:
    """Numbers that the sizes of an encoder's arrays are products of."""
    return {name: value for name, value in vars(_fields_of(encoder)).items() if type(value) is int}


def _fields_of(encoder: Encoder) -> BertEncoder | DecoderConfig:
    return encoder.config if isinstance(encoder, Decoder) else encoder


def with_choices(encoder: Encoder, chosen: Mapping[str, object]) -> Encoder:
    """Copy of an encoder with the attributes that a run chooses.

    Raises:
        InputError: no such choice, or a value of another type or out of range.
    """
    choices = DECODER_CHOICES if isinstance(encoder, Decoder) else BERT_CHOICES
    for name in chosen:
        if name not in choices:
            raise InputError(
                f"{WHOSE_CHOICES} of {encoder.model_type} takes {', '.join(choices)}, got {name!r}"
                f"{nearest(name, choices)}"
            )
    made = make_encoder({**describe_encoder(encoder), **chosen}, WHOSE_CHOICES)
    if isinstance(made, Decoder):
        for name in chosen:
            depends_on = "lora_rank" if name.startswith("lora_") else "remat" if name == "remat_policy" else name
            if name != depends_on and not getattr(made.config, depends_on):
                raise InputError(
                    f"{WHOSE_CHOICES}.{name} changes nothing without {depends_on}: set {WHOSE_CHOICES}.{depends_on}"
                )
    return made


def for_scoring(encoder: Encoder) -> Encoder:
    """Copy of an encoder without the choices of training: activations are kept, and computed in the weights' type."""
    if isinstance(encoder, Decoder):
        config = encoder.config
        return Decoder(dataclasses.replace(config, attention="plain", dtype=config.param_dtype, remat=False))
    return encoder.clone(dtype=DTYPES["float32"], remat=False, parent=None)


def typed_choices(chosen: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Attributes of an encoder that is trained, in their types; text, as a command line gives it, is read by its type.

    Raises:
        InputError: no such choice, or a value of another type.
    """
    types = {**_types("llama"), **_types("bert"), "dtype": str, "param_dtype": str}
    known = dict.fromkeys([*BERT_CHOICES, *DECODER_CHOICES])
    for name in chosen:
        if name not in known:
            raise InputError(f"{WHOSE_CHOICES} takes {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return typed(chosen, types, WHOSE_CHOICES)


def _types(model_type: object) -> dict[str, Any]:
    """Annotation of each attribute of the encoders of an architecture."""
    if model_type in typing.get_args(DecoderType):
        return field_types(DecoderConfig)
    return {name: kind for name, kind in field_types(BertEncoder).items() if name not in _OF_MODULES}
