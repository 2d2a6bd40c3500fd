"""Floating-point operations of a training step, from sizes alone."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp

from routerjax.models.attention import blocks_of
from routerjax.models.decoder import Decoder
from routerjax.models.encoders import Encoder
from routerjax.typing import Variables

LAYER = re.compile(r"layers|layer_\d+")
MATRICES = ("kernel", "lora_a", "lora_b", "model_embedding", "label_embedding")


class Flops(NamedTuple):
    """Floating-point operations; a product and its sum are two.

    Attributes:
        forward: from tokens to scores.
        backward: the gradients of what is trained, and those of the activations that they need.
        recomputed: activations that are computed again in the backward pass, see ``remat``.
    """

    forward: int
    backward: int
    recomputed: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def training_flops(
    encoder: Encoder, trained: Variables, fixed: Variables, *, rows: int, length: int, last_only: bool = False
) -> Flops:
    """Count the operations of the loss of one batch and of its gradient, padding included.

    Matmuls are counted, and nothing else: norms, softmax and activations are a few percent where layers are narrow, and
    less where they are wide. A matrix ``[in, out]`` costs ``2 in out`` a token, and in the backward pass twice that if
    it is trained, once if it is frozen; attention costs ``4 width`` for each layer and pair of tokens that plain
    attention computes, and twice that backward.

    Args:
        encoder: of the router.
        trained, fixed: the router's collections, as arrays or as shapes: those that are optimised, and the others.
        rows: prompts.
        length: tokens of each.
        last_only: of a decoder's last layer, only keys and values are computed for all tokens, and all else for one.

    Returns:
        Operations of all devices together.
    """
    is_decoder, tokens = isinstance(encoder, Decoder), rows * length
    of = encoder.config if is_decoder else encoder
    width = of.num_heads * of.head_dim if is_decoder else encoder.width
    keeps_matmuls = is_decoder and of.remat_policy == "dots"
    pairs = sum((end - first) * end for first, end in blocks_of(length)) if is_decoder else length**2
    forward = 4 * rows * width * (pairs * (of.num_layers - last_only) + length * last_only)
    backward, recomputed = 2 * forward, forward
    for collection, is_trained in ((trained, True), (fixed, False)):
        leaves: dict[tuple[str, ...], Any] = dict(flax.traverse_util.flatten_dict(dict(collection)))
        for path, leaf in leaves.items():
            if path[-1] not in MATRICES:
                continue
            in_layer = any(LAYER.fullmatch(name) for name in path)
            once = 2 * leaf.size * (tokens if in_layer else rows)  # the head's are of the pooled vector
            if in_layer and last_only and not {"key", "value"}.intersection(path):
                once -= 2 * leaf.size // of.num_layers * (tokens - rows)
            forward += once
            backward += once * (1 + is_trained)
            # What a decoder's layer ends with is added to its input: no gradient needs the sum again.
            if in_layer and not keeps_matmuls and not (is_decoder and "down" in path):
                recomputed += once
    return Flops(forward, backward, recomputed if of.remat else 0)


class CountsTextFlops:
    """Mixin of a router that reads text with its ``encoder``: counts its operations, for the figures of a run."""

    encoder: Any  # of text, or what pools the hidden states of one

    @property
    def reads_last_token(self) -> bool:
        """Return True if of the last layer only the hidden state of each row's last token is read."""
        return getattr(self.encoder, "reads_last_token", False)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Type of the encoder's matmuls."""
        encoder = self._text_encoder
        return encoder.config.dtype if isinstance(encoder, Decoder) else encoder.dtype

    def training_flops(self, trained: Variables, fixed: Variables, *, rows: int, length: int) -> Flops:
        """Count the operations of a step, see :func:`training_flops`."""
        last_only = self.reads_last_token
        return training_flops(self._text_encoder, trained, fixed, rows=rows, length=length, last_only=last_only)

    @property
    def _text_encoder(self) -> Encoder:
        return getattr(self.encoder, "encoder", self.encoder)
