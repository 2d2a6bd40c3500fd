"""Causal attention of a decoder: in plain operations, which run everywhere, and by cuDNN's kernel on GPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32


def plain_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length key_heads head_dim"],
    value: Float[Array, "batch length key_heads head_dim"],
    attended: Bool[Array, "batch length length"],
    lowest: Float[Array, ""],
    *,
    scale: float,
    drop: Callable[[Array], Array],
) -> Float[Array, "batch length heads head_dim"]:
    """Mean of the values, weighted by the softmax of ``scale * query . key`` over the keys that are attended to.

    Logits, softmax and sums are in float32.

    Args:
        query, key, value: each head of keys and values serves as many heads of queries, which lie together.
        attended: from queries to keys.
        lowest: logit of the other keys.
        scale: of the logits.
        drop: dropout of the weights.
    """
    batch, length, num_heads, head_dim = query.shape
    key_heads = key.shape[2]
    group = num_heads // key_heads
    # Queries of one head of keys lie together: [batch, key heads, queries of each x length, head_dim].
    query = query.reshape(batch, length, key_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    query = query.reshape(batch, key_heads, group * length, head_dim) * scale
    logits = jnp.matmul(query, key.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, key_heads, group, length, length)
    logits = jnp.where(attended[:, None, None], logits, lowest)
    # Softmax, with the division after the sum over keys: there are fewer values of a head than keys.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = drop(weights).astype(value.dtype).reshape(batch, key_heads, group * length, length)
    mixed = jnp.matmul(weights, value.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    mixed = mixed.reshape(batch, key_heads, group, length, head_dim) / total
    return mixed.astype(value.dtype).transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)


def cudnn_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length key_heads head_dim"],
    value: Float[Array, "batch length key_heads head_dim"],
    lengths: Int32[Array, "batch"],
    window: Int[Array, ""],
    *,
    scale: float,
    windows: tuple[int, ...],
) -> Float[Array, "batch length heads head_dim"]:
    """The same by cuDNN, which never has a matrix ``[length, length]`` in memory; bfloat16, padding on the right alone.

    Args:
        query, key, value: see :func:`plain_attention`.
        lengths: tokens of each row, at least 1.
        window: tokens that each attends to, itself included; 0 for all before it.
        scale: of the logits.
        windows: all that ``window`` may be: the kernel of each is compiled.
    """
    length = query.shape[1]
    # A window as long as the rows leaves nothing out.
    kernels = sorted({each if each < length else 0 for each in windows})

    def attention(size: int) -> Callable[..., Array]:
        return functools.partial(
            jax.nn.dot_product_attention,
            scale=scale,
            is_causal=True,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            local_window_size=(size - 1, 0) if size else None,
            implementation="cudnn",
        )

    if len(kernels) == 1:
        return attention(kernels[0])(query, key, value)
    which = jnp.searchsorted(jnp.asarray(kernels), jnp.where(window < length, window, 0))
    return jax.lax.switch(which, [attention(size) for size in kernels], query, key, value)


def padding_right(
    is_token: Bool[Array, "batch length"],
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """``(move, move_back)``: arrays ``[batch, length, ...]`` with each row's padding moved behind its tokens, and back.

    Tokens of a row must be without padding between them.
    """
    length = is_token.shape[1]
    first, place = jnp.argmax(is_token, axis=1)[:, None], jnp.arange(length)[None]

    def take(index: Array) -> Callable[[Array], Array]:
        return lambda array: jnp.take_along_axis(array, index.reshape(*index.shape, *[1] * (array.ndim - 2)), axis=1)

    return take((place + first) % length), take((place - first) % length)
