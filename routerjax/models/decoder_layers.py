"""Layers of a decoder: RMS norm and rotary positions."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from routerjax.models.linear import weight

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")


class RmsNorm(nn.Module):
    """Vectors over the root of their mean square, times a learned scale; computed in float32.

    Attributes:
        epsilon: added to the mean square.
        offset: added to the scale: 1 in Gemma, whose stored scales are around 0.
        dtype: of the stored scale.
        frozen: see :func:`routerjax.models.linear.weight`.
    """

    epsilon: float
    offset: float
    dtype: jnp.dtype
    frozen: bool

    @nn.compact
    def __call__(self, hidden: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        """Normalise over the last axis."""
        scale = weight(
            self,
            "scale",
            nn.initializers.constant(1.0 - self.offset),
            ("norm",),
            hidden.shape[-1:],
            dtype=self.dtype,
            frozen=self.frozen,
        )
        wide = hidden.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale = (self.offset + scale.astype(jnp.float32)).reshape(*[1] * (hidden.ndim - 1), -1)
        return (normed * scale).astype(hidden.dtype)


def rotary_frequencies(head_dim: int, base: float, scaling: tuple[float, ...] = ()) -> Float[np.ndarray, "half"]:
    """Radians a token of each pair of a head's coordinates, float32.

    Args:
        head_dim: an even number.
        base: the longest wavelength is about ``2 pi base``.
        scaling: ``()`` for none; ``(factor,)`` divides all frequencies; Llama 3.1's ``(factor, low, high, length)``
            divides those whose wavelength is over ``length / low`` tokens, leaves those under ``length / high`` as they
            are, and interpolates between the two.

    Reference:
        Su et al., "RoFormer" (arXiv 2104.09864); "The Llama 3 Herd of Models" (arXiv 2407.21783), and its reference
        implementation for the scaling.
    """
    frequencies = np.float32(1.0) / np.float32(base) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if len(scaling) == 1:
        frequencies = frequencies / np.float32(scaling[0])
    elif scaling:
        factor, low, high, length = scaling
        turns = length * frequencies / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = (1.0 - kept) * frequencies / factor + kept * frequencies
    return frequencies.astype(np.float32)


def rotate(
    heads: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "batch length half"],
    sin: Float[Array, "batch length half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Turn each pair of coordinates, the i-th of the first half and the i-th of the second, by its angle."""
    first, second = jnp.split(heads, 2, axis=-1)
    cos, sin = cos[:, :, None].astype(heads.dtype), sin[:, :, None].astype(heads.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
