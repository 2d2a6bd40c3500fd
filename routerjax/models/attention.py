"""Causal attention of a decoder: in plain operations, which run everywhere, and by cuDNN's kernel on GPUs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

BLOCKS, LONG = 4, 256
"""Rows of so many tokens are computed in as many blocks of queries, each with the keys up to its end alone."""


def blocks_of(length: int) -> list[tuple[int, int]]:
    """Blocks of queries: the first of each, and the one after its last."""
    if not isinstance(length, int):  # not known yet: an export for any length
        return [(0, length)]
    ends = np.linspace(0, length, (BLOCKS if length >= LONG else 1) + 1).astype(int).tolist()
    return list(itertools.pairwise(ends))


def plain_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length key_heads head_dim"],
    value: Float[Array, "batch length key_heads head_dim"],
    is_token: Bool[Array, "batch length"],
    window: Int[Array, ""],
    *,
    scale: float,
    drop: Callable[[Array], Array],
    place: Int[Array, "batch"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """Mean of the values, weighted by the softmax of ``scale * query . key`` over the tokens up to each.

    Logits, softmax and sums are in float32.

    Args:
        query, key, value: each head of keys and values serves as many heads of queries, which lie together.
        is_token: false on padding.
        window: tokens that each attends to, itself included; 0 for all before it.
        scale: of the logits.
        drop: dropout of the weights.
        place: where the query of each row is, if there is one of each row alone: ``[batch, 1, heads, head_dim]``.
    """
    batch, num_queries, num_heads, head_dim = query.shape
    length, key_heads = key.shape[1:3]
    group = num_heads // key_heads
    # Not known to be the same in all layers: a scan would make what is [length, length] ahead of its loop, and carry
    # it.
    at, lowest, window = jax.lax.optimization_barrier((jnp.arange(length), jnp.finfo(jnp.float32).min, window))
    # Queries of one head of keys lie together: [batch, key heads, queries of each, length, head_dim].
    query = query.reshape(batch, num_queries, key_heads, group, head_dim).transpose(0, 2, 3, 1, 4) * scale
    key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)

    query_at = at[None] if place is None else place[:, None]

    def attend(first: int, last: int, end: int) -> Array:
        """Attend from some queries to the keys up to ``end``."""
        count = last - first
        distance = query_at[:, first:last, None] - at[None, None, :end]
        attended = (distance >= 0) & is_token[:, None, :end] & ((window == 0) | (distance < window))
        queries = query[:, :, :, first:last].reshape(batch, key_heads, group * count, head_dim)
        logits = jnp.matmul(queries, key[..., :end], preferred_element_type=jnp.float32)
        logits = logits.reshape(batch, key_heads, group, count, end)
        logits = jnp.where(attended[:, None, None], logits, lowest)
        # Softmax, with the division after the sum over keys: there are fewer values of a head than keys.
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        weights = drop(weights).astype(value.dtype).reshape(batch, key_heads, group * count, end)
        mixed = jnp.matmul(weights, value[:, :, :end], preferred_element_type=jnp.float32)
        mixed = mixed.reshape(batch, key_heads, group, count, head_dim) / total
        return mixed.astype(value.dtype).transpose(0, 3, 1, 2, 4).reshape(batch, count, num_heads, head_dim)

    if place is not None:
        return attend(0, 1, length)
    blocks = [attend(first, end, end) for first, end in blocks_of(length)]
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


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
    """Compute the same by cuDNN, which never has a matrix ``[length, length]`` in memory.

    In bfloat16, for rows whose padding is on the right.

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
