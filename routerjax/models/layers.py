"""Layers and look-ups that more than one family is made of."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from routerjax.errors import InputError
from routerjax.models.linear import Linear

# Added to the logits of keys that are padding. Finite, so that a row of nothing but padding has no NaN.
MASKED = -1e9
SMALLEST_NORM = 1e-12
# Distances, in tokens, at which MPNet's buckets begin; those further away share the last one.
BUCKET_STARTS = (*range(1, 9), 12, 16, 23, 32, 46, 64, 91)


def remembered(module: nn.Module, name: str) -> Array:
    """Look up an array of a module's ``memory``, which battles are made into rather than trained on.

    Raises:
        InputError: the module has no such memory, as where it is initialised.
    """

    def missing() -> Array:
        raise InputError(f"{type(module).__name__} has no parameters to initialise; build its memory from battles")

    return module.variable("memory", name, missing).value


def unit_length(vector: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """``vector`` over its Euclidean length, or over 1e-12 where it is shorter, as torch's ``normalize``.

    The bound lies under the root, so that a vector of zeros has a gradient.
    """
    squares = jnp.sum(vector * vector, axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(squares, SMALLEST_NORM**2))


def mean_over_tokens(
    hidden: Float[Array, "batch length embed"], is_token: Bool[Array, "batch length"]
) -> Float[Array, "batch embed"]:
    """Mean of the hidden states over the tokens that are not padding, in float32."""
    weight = is_token.astype(jnp.float32)
    total = jnp.einsum("ble,bl->be", hidden.astype(jnp.float32), weight)
    return total / jnp.maximum(weight.sum(axis=1), 1.0)[:, None]


def last_token(
    hidden: Float[Array, "batch length embed"], is_token: Bool[Array, "batch length"]
) -> Float[Array, "batch embed"]:
    """Hidden state of each row's last token, wherever its padding is."""
    return at_place(hidden, last_place(is_token))[:, 0]


def last_place(is_token: Bool[Array, "batch length"]) -> Int[Array, "batch"]:
    """Place of each row's last token; 0 where there is none."""
    return jnp.max(jnp.where(is_token, jnp.arange(is_token.shape[1]), 0), axis=1)


def at_place(hidden: Float[Array, "batch length embed"], place: Int[Array, "batch"]) -> Float[Array, "batch 1 embed"]:
    """Take one vector of each row."""
    return jnp.take_along_axis(hidden, place[:, None, None], axis=1)


def layer_norm(*, epsilon: float, name: str) -> nn.LayerNorm:
    """Layer norm over ``embed``, in float32."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=jnp.float32,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )


def relative_buckets(length: int) -> Int[Array, "query key"]:
    """Bucket of the distance from each query to each key, as MPNet numbers them: 32 in all.

    0 is the token itself, 1 to 15 are the keys before it, the nearest first, and 17 to 31 the keys after it.

    Reference:
        Raffel et al., "T5" (arXiv 1910.10683), section 2.1, with the sizes of Song et al., "MPNet" (arXiv 2004.09297).
    """
    position = jnp.arange(length)
    distance = position[None, :] - position[:, None]
    bucket = jnp.searchsorted(jnp.asarray(BUCKET_STARTS), jnp.abs(distance), side="right", method="compare_all")
    return bucket + (len(BUCKET_STARTS) + 1) * (distance > 0)


def gelu(hidden: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``h * P(z <= h)`` of a standard normal z, exact, computed in float32.

    By erf, as torch does: the erfc of ``jax.nn.gelu`` takes about three times as long on CPU.
    """
    wide = hidden.astype(jnp.float32)
    activated = 0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))
    # Below -6 erf is -1 in float32, so this changes nothing; but XLA on CPU ends a fusion here, and otherwise it pulls
    # all of the above into the next matmul, with each constant written out as an array of the activations' size.
    return jnp.where(wide < -6.0, 0.0, activated).astype(hidden.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of every token to every token that is not padding, in both directions.

    Attributes:
        num_heads: a divisor of the width.
        dropout_rate: of the attention weights, from the rng stream ``dropout``, when not deterministic.
        initializer_range: standard deviation of the initial kernels.
        dtype: of the matmuls; the softmax is in float32.
    """

    num_heads: int
    dropout_rate: float = 0.0
    initializer_range: float = 0.02
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "tokens embed"],
        is_token: Bool[Array, "batch length"],
        position_bias: Float[Array, "heads query key"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "tokens embed"]:
        """Attend within each row; ``hidden`` is ``[batch * length, embed]``, flat for one large matmul.

        ``position_bias`` is added to the logits of each row.
        """
        batch, length = is_token.shape
        width = hidden.shape[-1]
        head_dim = width // self.num_heads

        def heads(name: str) -> Float[Array, "batch heads length head_dim"]:
            projected = Linear(width, ("embed", "heads"), self.initializer_range, self.dtype, name=name)(hidden)
            return projected.reshape(batch, length, self.num_heads, head_dim).transpose(0, 2, 1, 3)

        query, key, value = heads("query") / head_dim**0.5, heads("key"), heads("value")
        logits = jnp.matmul(query, key.transpose(0, 1, 3, 2), preferred_element_type=jnp.float32)
        if position_bias is not None:
            logits = logits + position_bias[None]
        logits = logits + jnp.where(is_token, 0.0, MASKED)[:, None, None, :]
        # Softmax, with the division after the sum over keys: there are fewer values of a head than keys.
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        weights = nn.Dropout(self.dropout_rate, deterministic=deterministic)(weights).astype(self.dtype)
        mixed = (jnp.matmul(weights, value, preferred_element_type=jnp.float32) / total).astype(self.dtype)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch * length, width)
        return Linear(width, ("heads", "embed"), self.initializer_range, self.dtype, name="out")(mixed)
