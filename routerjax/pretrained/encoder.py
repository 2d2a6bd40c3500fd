"""Encoders of text as Hugging Face saves them, of whichever architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routerjax.errors import InputError
from routerjax.pretrained.architectures import ARCHITECTURES
from routerjax.pretrained.bert import bert_names, read_bert_encoder
from routerjax.pretrained.decoder import DECODER_TYPES, decoder_names, read_decoder
from routerjax.pretrained.files import read_json
from routerjax.pretrained.weights import TensorNames


def read_encoder(folder: Path) -> dict[str, Any]:
    """Read the attributes of an encoder from a ``config.json``, as :func:`routerjax.models.make_encoder` takes them.

    Raises:
        InputError: no such file, damaged, or an architecture, or a setting of one, that is not computed here.
    """
    path = folder / "config.json"
    model_type = read_json(path, dict).get("model_type")
    if model_type in DECODER_TYPES:
        return read_decoder(folder)
    if model_type in tuple(ARCHITECTURES):  # a mapping would hash it, and it may be anything
        return read_bert_encoder(folder)
    # No suggestion: nobody mistypes what a program wrote, and another architecture's name would be a wrong mend.
    known = ", ".join((*ARCHITECTURES, *DECODER_TYPES))
    raise InputError(f"{path}: model_type must be one of {known}, got {model_type!r}")


def encoder_names(described: Mapping[str, Any], folder: Path | None = None) -> TensorNames:
    """Tensors in transformers -> parameters of a module that holds the encoder as ``encoder``, whatever its head.

    Args:
        described: attributes of the encoder, see :func:`read_encoder`; maybe of fewer layers than the folder's.
        folder: with ``config.json``, whose layers above those of the encoder are left out; None for the same layers.
    """
    model_type, num_layers = described["model_type"], described["num_layers"]
    above = range(num_layers, num_layers if folder is None else read_encoder(folder)["num_layers"])
    if model_type in DECODER_TYPES:
        return decoder_names(model_type, layers_left_out=above, has_final_norm=described.get("final_norm", True))
    return bert_names(model_type, head=False, layers_left_out=above)
