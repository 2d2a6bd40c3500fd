"""Projections and tables whose weights may lie in parts on a mesh of devices: each is gathered as it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Float, Int

FLOAT32 = jnp.dtype("float32")
FROZEN = "memory"
"""The collection of the weights that low-rank adapters are added to: stored, never optimised."""

Initializer = Callable[..., Array]
GATHERED = ("embed", "rank")
"""Axes of kernels that lie across the devices that the batch is split over: whole where the kernel is used."""


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


class Linear(nn.Module):
    """A projection ``x W + b``, with low-rank adapters where they are asked for.

    Attributes:
        features: width of what comes out.
        axes: logical axes of the kernel, which is ``[in, out]``: the layout that XLA multiplies fastest on CPU.
        initializer_range: standard deviation of the initial kernel.
        dtype: of the matmul.
        param_dtype: of the kernel and the bias as they are stored; adapters are stored in float32.
        use_bias: add a bias.
        frozen: store the kernel and the bias, and do not train them; see :func:`weight`.
        rank: add adapters: with the kernel ``W`` a projection by ``W + scale * A B``, A having so many columns; 0 for
            none.
        scale: of adapters.

    Reference:
        Hu et al., "LoRA" (arXiv 2106.09685).
    """

    features: int
    axes: tuple[str, str]
    initializer_range: float
    dtype: jnp.dtype = FLOAT32
    param_dtype: jnp.dtype = FLOAT32
    use_bias: bool = True
    frozen: bool = False
    rank: int = 0
    scale: float = 1.0

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


def rows_of_table(
    table: Float[Array, "vocab embed"], ids: Int[Array, "batch length"], *, dtype: jnp.dtype = FLOAT32
) -> Float[Array, "batch length embed"]:
    """Rows of a table that may be stored in parts: each device reads its columns of all tokens, and gives them to the
    device that has the tokens. The table itself stays where it is.
    """
    rows = table[spmd.with_logical_constraint(ids, (None, None))].astype(dtype)
    rows = spmd.with_logical_constraint(rows, (None, None, "embed"))
    return spmd.with_logical_constraint(rows, ("batch", None, "embed"))
