"""Attributes of an encoder in their types: of a description, and those that a run chooses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from routerjax.config import AttributeValue
from routerjax.errors import InputError, choose, nearest
from routerjax.models.bert_encoder import BertEncoder
from routerjax.validation import coerce, field_types, typed

# What a run may say of an encoder that it trains; all else is what the encoder's files say.
WHOSE_CHOICES = "features.encoder_attributes"
CHOICES = ("dropout_rate", "attention_dropout_rate", "dtype", "remat", "scan_layers")
DTYPES = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}


def encoder_types() -> dict[str, object]:
    """Annotation of each attribute of :class:`BertEncoder`."""
    return {name: kind for name, kind in field_types(BertEncoder).items() if name not in ("parent", "name")}


def encoder_attributes(attributes: Mapping[str, object], whose: str) -> dict[str, Any]:
    """Attributes of an encoder in their types; an error calls them ``whose.name``.

    Raises:
        InputError: a value of another type or out of range.
    """
    types, checked = encoder_types(), {}
    for name, value in attributes.items():
        what = f"{whose}.{name}"
        checked[name] = choose(str(value), DTYPES, what) if name == "dtype" else coerce(value, types[name], what)
    if "num_heads" in checked and checked["width"] % checked["num_heads"] != 0:
        raise InputError(f"{whose}.num_heads ({checked['num_heads']}) must divide its width ({checked['width']})")
    return checked


def encoder_choices(chosen: Mapping[str, object]) -> dict[str, Any]:
    """Attributes of an encoder that is trained, as :class:`BertEncoder` takes them.

    Raises:
        InputError: no such choice, or a value of another type or out of range.
    """
    _require_choices(chosen)
    return encoder_attributes(chosen, WHOSE_CHOICES)


def typed_choices(chosen: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Attributes of an encoder that is trained, in their types; text, as a command line gives it, is read by its type.

    Raises:
        InputError: no such choice, or a value of another type.
    """
    _require_choices(chosen)
    return typed(chosen, {**encoder_types(), "dtype": str}, WHOSE_CHOICES)


def _require_choices(names: Iterable[str]) -> None:
    for name in names:
        if name not in CHOICES:
            raise InputError(f"{WHOSE_CHOICES} takes {', '.join(CHOICES)}, got {name!r}{nearest(name, CHOICES)}")
