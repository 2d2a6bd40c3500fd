"""The decoder of causal language models: tokens to hidden states, each of which has seen the tokens before it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Bool, Float, Int

from routerjax.config import Count, Fraction, NonNegative, Positive, Whole
from routerjax.models.attention import cudnn_attention, padding_right, plain_attention
from routerjax.models.decoder_layers import (
    FLOAT32,
    FROZEN,
    PROJECTIONS,
    Linear,
    RmsNorm,
    rotary_frequencies,
    rotate,
    weight,
)
from routerjax.typing import Query

DecoderType = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]
REMAT_POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and choices of a decoder: what its files say, and what a run chooses.

    Attributes:
        model_type: as in ``config.json``.
        vocab_size: rows of the token table.
        width: of the hidden states.
        num_layers: layers that are computed; fewer than the files have where a lower layer is pooled.
        num_heads: heads of queries.
        num_key_heads: heads of keys and values, each of which serves ``num_heads / num_key_heads`` of queries.
        head_dim: width of a head.
        mlp_dim: width of the gated MLP.
        max_positions: the longest input in tokens.
        activation: of the gate.
        norm_epsilon: of the RMS norms; norm_offset: added to their stored scales.
        sandwich_norms: normalise what attention and MLP return, too.
        qk_norm: normalise the heads of queries and keys.
        qkv_bias, out_bias, mlp_bias: projections that have biases.
        scale_embeddings: multiply token embeddings by the root of the width.
        attention_scale: of the logits of attention.
        windows: of each layer, tokens that it attends to, the token itself included; 0 for all before it.
        rope_base, rope_scaling: see :func:`routerjax.models.decoder_layers.rotary_frequencies`.
        rope_local_base: the base of layers with a window; 0 for the same as of the others.
        final_norm: normalise the last hidden states; false where a lower layer is pooled.
        attention: ``plain`` operations, which run everywhere, or ``cudnn``, a kernel of NVIDIA's GPUs for bfloat16.
        attention_dropout_rate: of the attention weights in training.
        initializer_range: standard deviation of initial weights.
        lora_rank: of adapters, which alone are trained; 0 trains the weights themselves.
        lora_alpha: adapters count ``alpha / rank``; lora_rank_stabilized: ``alpha / sqrt(rank)`` (arXiv 2312.03732).
        lora_targets: projections that have adapters.
        added_tokens: tokens after the vocabulary, with embeddings that are trained even where adapters are.
        tie_embeddings: the files have the token table as the output layer, too; its rows are the logits' weights.
        logit_cap: the logits of tokens become ``cap * tanh(logit / cap)``; 0 leaves them as they are.
        dtype: of the matmuls; softmax, norms and scores are in float32.
        param_dtype: that the weights are stored in.
        remat: compute activations again in the backward pass, rather than keep them.
        remat_policy: which: ``full`` for all, ``dots`` for all but the results of matmuls.
        unroll: layers that are compiled one by one; 1 compiles one layer, and scans over the stacked weights.
    """

    model_type: DecoderType
    vocab_size: Count
    width: Count
    num_layers: Count
    num_heads: Count
    num_key_heads: Count
    head_dim: Count
    mlp_dim: Count
    max_positions: Count
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_epsilon: NonNegative = 1e-6
    norm_offset: NonNegative = 0.0
    sandwich_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    scale_embeddings: bool = False
    attention_scale: Positive
    windows: tuple[Whole, ...]
    rope_base: Positive = 10000.0
    rope_local_base: NonNegative = 0.0
    rope_scaling: tuple[Positive, ...] = ()
    final_norm: bool = True
    attention: Literal["plain", "cudnn"] = "plain"
    attention_dropout_rate: Fraction = 0.0
    initializer_range: NonNegative = 0.02
    lora_rank: Whole = 0
    lora_alpha: Positive = 16.0
    lora_rank_stabilized: bool = False
    lora_targets: tuple[str, ...] = PROJECTIONS
    added_tokens: Whole = 0
    tie_embeddings: bool = False
    logit_cap: NonNegative = 0.0
    dtype: jnp.dtype = FLOAT32
    param_dtype: jnp.dtype = FLOAT32
    remat: bool = False
    remat_policy: Literal["full", "dots"] = "full"
    unroll: Count = 1

    @property
    def lora_scale(self) -> float:
        """Factor of the adapters."""
        rank = max(self.lora_rank, 1)
        return self.lora_alpha / (math.sqrt(rank) if self.lora_rank_stabilized else rank)


class DecoderLayer(nn.Module):
    """Causal attention and a gated MLP, each on a normalised input and added to it.

    Attributes:
        config: of the decoder.
        deterministic: False drops attention weights at random.
    """

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "tokens embed"],
        window: Int[Array, ""],
        is_token: Bool[Array, "batch length"],
        angles: Sequence[tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]],
    ) -> tuple[Float[Array, "tokens embed"], None]:
        """Apply one layer to tokens that lie flat, ``[batch * length, embed]``.

        Args:
            hidden: of the layer below.
            window: tokens that each attends to, 0 for all before it.
            is_token: false on padding.
            angles: cosine and sine of the rotary positions: of layers without a window, and of those with one if they
                are others.

        Returns:
            The hidden states, and None, as a scan over layers takes them.
        """
        config = self.config
        hidden = spmd.with_logical_constraint(hidden, ("batch", "embed"))
        turn = jax.tree.map(functools.partial(jnp.where, window > 0), angles[-1], angles[0])
        hidden = hidden + self._norm("attention_out_norm", config.sandwich_norms)(
            self._attention(self._norm("attention_norm")(hidden), is_token, window, turn)
        )
        hidden = hidden + self._norm("mlp_out_norm", config.sandwich_norms)(
            self._mlp(self._norm("mlp_norm")(hidden)),
        )
        return spmd.with_logical_constraint(hidden, ("batch", "embed")), None

    def _norm(self, name: str, is_there: bool = True) -> Callable[[Array], Array]:
        return rms_norm(self.config, name) if is_there else lambda hidden: hidden

    def _linear(self, name: str, features: int, axes: tuple[str, str], *, use_bias: bool) -> Linear:
        config = self.config
        return Linear(
            features,
            axes,
            use_bias=use_bias,
            frozen=config.lora_rank > 0,
            rank=config.lora_rank if name in config.lora_targets else 0,
            scale=config.lora_scale,
            initializer_range=config.initializer_range,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            name=name,
        )

    def _attention(
        self,
        hidden: Float[Array, "tokens embed"],
        is_token: Bool[Array, "batch length"],
        window: Int[Array, ""],
        angles: tuple[Array, Array],
    ) -> Float[Array, "tokens embed"]:
        config, (batch, length) = self.config, is_token.shape

        def heads(name: str, count: int) -> Float[Array, "batch length heads head_dim"]:
            linear = self._linear(name, count * config.head_dim, ("embed", "heads"), use_bias=config.qkv_bias)
            return linear(hidden).reshape(batch, length, count, config.head_dim)

        query, key = heads("query", config.num_heads), heads("key", config.num_key_heads)
        value = heads("value", config.num_key_heads)
        query = rotate(self._norm("query_norm", config.qk_norm)(query), *angles)
        key = rotate(self._norm("key_norm", config.qk_norm)(key), *angles)
        if config.attention == "cudnn":
            lengths = jnp.maximum(is_token.sum(axis=1, dtype=jnp.int32), 1)
            scale, windows = config.attention_scale, config.windows
            mixed = cudnn_attention(query, key, value, lengths, window, scale=scale, windows=windows)
        else:
            drop = nn.Dropout(config.attention_dropout_rate, deterministic=self.deterministic)
            mixed = plain_attention(query, key, value, is_token, window, scale=config.attention_scale, drop=drop)
        mixed = mixed.reshape(batch * length, -1)
        return self._linear("out", config.width, ("heads", "embed"), use_bias=config.out_bias)(mixed)

    def _mlp(self, hidden: Float[Array, "tokens embed"]) -> Float[Array, "tokens embed"]:
        config = self.config
        gate = self._linear("gate", config.mlp_dim, ("embed", "mlp"), use_bias=config.mlp_bias)(hidden)
        up = self._linear("up", config.mlp_dim, ("embed", "mlp"), use_bias=config.mlp_bias)(hidden)
        activated = ACTIVATIONS[config.activation](gate) * up
        return self._linear("down", config.width, ("mlp", "embed"), use_bias=config.mlp_bias)(activated)


class Decoder(nn.Module):
    """Token ids to hidden states, each of which depends on the tokens up to its own.

    One module is Llama 2 to 3.2, Mistral, Qwen 2, 2.5 and 3, and the text model of Gemma 3. Padding may be on the left
    or on the right of a row.

    Attributes:
        config: sizes and choices.
    """

    config: DecoderConfig

    @property
    def model_type(self) -> str:
        """Name of the architecture in ``config.json``."""
        return self.config.model_type

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.config.width

    @property
    def max_length(self) -> int:
        """The longest input in tokens."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        """Number of tokens, those that were added included."""
        return self.config.vocab_size + self.config.added_tokens

    @property
    def padding_id(self) -> int:
        """Token that fills a row up: any, as no token attends to it."""
        return 0

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch length embed"]:
        """Read ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; the mask is 0 on padding.

        Raises:
            ValueError: more tokens than the decoder has positions.
        """
        config, token_ids, is_token = self.config, query["token_ids"], query["attention_mask"] > 0
        batch, length = token_ids.shape
        if length > config.max_positions:
            raise ValueError(f"this decoder reads at most {config.max_positions} tokens, got {length}")
        moved_back = None
        if config.attention == "cudnn":
            moved, moved_back = padding_right(is_token)
            token_ids, is_token = moved(token_ids), moved(is_token)
        hidden = self._embed(token_ids).reshape(-1, config.width)
        layer_class = DecoderLayer
        if config.remat:
            layer_class = nn.remat(DecoderLayer, prevent_cse=False, policy=REMAT_POLICIES[config.remat_policy])
        in_axes: Any = (0, nn.broadcast, nn.broadcast)
        scan = nn.scan(
            layer_class,
            variable_axes={"params": 0, FROZEN: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=config.num_layers,
            unroll=min(config.unroll, config.num_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        windows = jnp.asarray(config.windows, jnp.int32)
        hidden, _ = scan(config, deterministic, name="layers")(hidden, windows, is_token, self._angles(is_token))
        if config.final_norm:
            hidden = rms_norm(config, "final_norm")(hidden)
        hidden = hidden.reshape(batch, length, config.width)
        return hidden if moved_back is None else moved_back(hidden)

    def _embed(self, token_ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        config = self.config
        table = weight(
            self,
            "token_embedding",
            nn.initializers.normal(config.initializer_range),
            ("vocab", "embed"),
            (config.vocab_size, config.width),
            dtype=config.param_dtype,
            frozen=config.lora_rank > 0,
        )
        if config.added_tokens:
            shape, axes = (config.added_tokens, config.width), ("added", "embed")
            normal = nn.initializers.normal(config.initializer_range)
            added = weight(self, "added_embedding", normal, axes, shape, dtype=config.param_dtype, frozen=False)
            is_added = (token_ids >= config.vocab_size)[..., None]
            place, known = jnp.maximum(token_ids - config.vocab_size, 0), jnp.minimum(token_ids, config.vocab_size - 1)
            hidden = jnp.where(is_added, self._rows(added, place), self._rows(table, known))
        else:
            hidden = self._rows(table, token_ids)
        return hidden * jnp.asarray(config.width**0.5, config.dtype) if config.scale_embeddings else hidden

    def _rows(
        self, table: Float[Array, "vocab embed"], ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch length embed"]:
        """Rows of a table that may be stored in parts: each device reads its columns of all tokens, and gives them to
        the device that has the tokens. The table itself stays where it is.
        """
        rows = table[spmd.with_logical_constraint(ids, (None, None))].astype(self.config.dtype)
        rows = spmd.with_logical_constraint(rows, (None, None, "embed"))
        return spmd.with_logical_constraint(rows, ("batch", None, "embed"))

    def _angles(self, is_token: Bool[Array, "batch length"]) -> list[tuple[Array, Array]]:
        """Cosine and sine of the rotary positions: of layers that attend to all, and of those that have a window."""
        config = self.config
        frequencies = [rotary_frequencies(config.head_dim, config.rope_base, config.rope_scaling)]
        if config.rope_local_base:
            frequencies.append(rotary_frequencies(config.head_dim, config.rope_local_base))
        # Counted over tokens, so that padding on the left changes nothing.
        position = jnp.maximum(jnp.cumsum(is_token, axis=1) - 1, 0).astype(jnp.float32)
        turns = [position[:, :, None] * each[None, None] for each in frequencies]
        return [(jnp.cos(turn), jnp.sin(turn)) for turn in turns]


def rms_norm(config: DecoderConfig, name: str) -> RmsNorm:
    """RMS norm of a decoder."""
    return RmsNorm(config.norm_epsilon, config.norm_offset, config.param_dtype, config.lora_rank > 0, name=name)
