"""Layers of a decoder: RMS norm, rotary positions, projections with low-rank adapters, grouped attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import spmd
from jaxtyping import Array, Float

FLOAT32 = jnp.dtype("float32")
FROZEN = "memory"
"""The collection of the weights that low-rank adapters are added to: stored, never optimised."""

Initializer = Callable[..., Array]
GATHERED = ("embed", "rank")
"""Axes of kernels that lie across the devices that the batch is split over: whole where the kernel is used."""
PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")


def weight(
    module: nn.Module,
    name: str,
    init: Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    *,
    dtype: jnp.dtype,
    frozen: bool,
) -> Array:
    """Make a weight of a module: a parameter, or where it is frozen, a variable that is stored and never optimised."""
    initializer = nn.with_logical_partitioning(init, axes)
    if not frozen:
        return cast(Array, module.param(name, initializer, shape, dtype))
    stored = module.variable(FROZEN, name, lambda: initializer(module.make_rng("params"), shape, dtype))
    return cast(Array, nn.meta.unbox(stored.value))


class RmsNorm(nn.Module):
    """Vectors over the root of their mean square, times a learned scale; computed in float32.

    Attributes:
        epsilon: added to the mean square.
        offset: added to the scale: 1 in Gemma, whose stored scales are around 0.
        dtype: of the stored scale.
        frozen: see :func:`weight`.
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


class Linear(nn.Module):
    """A projection ``x W + b``, with low-rank adapters where they are asked for.

    Attributes:
        features: width of what comes out.
        axes: logical axes of the kernel, which is ``[in, out]``.
        use_bias: add a bias.
        frozen: store the kernel and the bias, and do not train them; see :func:`weight`.
        rank: add adapters: with the kernel ``W`` a projection by ``W + scale * A B``, A having so many columns; 0 for
            none.
        scale: of adapters.
        initializer_range: standard deviation of the initial kernel.
        dtype: of the matmul.
        param_dtype: of the kernel and the bias as they are stored; adapters are stored in float32.

    Reference:
        Hu et al., "LoRA" (arXiv 2106.09685).
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool
    frozen: bool
    rank: int
    scale: float
    initializer_range: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Float[Array, "tokens in"]) -> Float[Array, "tokens out"]:
        """Project each row."""
        shape, frozen, rank = (hidden.shape[-1], self.features), self.frozen, self.rank
        normal, zeros = nn.initializers.normal(self.initializer_range), nn.initializers.zeros_init()
        kernel = weight(self, "kernel", normal, self.axes, shape, dtype=self.param_dtype, frozen=frozen)
        projected = self._project(hidden, kernel, self.axes)
        if self.use_bias:
            bias = weight(self, "bias", zeros, self.axes[1:], shape[1:], dtype=self.param_dtype, frozen=frozen)
            projected = projected + bias.astype(self.dtype)[None]
        if not rank:
            return projected
        # Uniform within 1 / sqrt(in), as peft starts A; B starts at 0, so that nothing changes.
        uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
        low = weight(self, "lora_a", uniform, (self.axes[0], "rank"), (shape[0], rank), dtype=FLOAT32, frozen=False)
        high = weight(self, "lora_b", zeros, ("rank", self.axes[1]), (rank, shape[1]), dtype=FLOAT32, frozen=False)
        added = self._project(self._project(hidden, low, (self.axes[0], "rank")), high, ("rank", self.axes[1]))
        return projected + added * jnp.asarray(self.scale, self.dtype)

    def _project(
        self, hidden: Float[Array, "tokens in"], kernel: Float[Array, "in out"], axes: tuple[str, str]
    ) -> Float[Array, "tokens out"]:
        """Multiply by a kernel that may be stored in parts across the devices that the batch is split over.

        It is gathered as it is used, in the matmul's type, and again in the backward pass: what is kept of the forward
        pass is each device's own part.
        """

        def project(hidden: Array, kernel: Array) -> Array:
            used = spmd.with_logical_constraint(kernel.astype(self.dtype), axes)
            used = spmd.with_logical_constraint(used, tuple(None if axis in GATHERED else axis for axis in axes))
            projected = jnp.matmul(hidden.astype(self.dtype), used)
            return spmd.with_logical_constraint(projected, ("batch", axes[1]))

        return jax.checkpoint(project, prevent_cse=False)(hidden, kernel)


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
