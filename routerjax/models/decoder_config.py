"""Sizes and choices of a decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from routerjax.config import Count, Fraction, NonNegative, Positive, Whole
from routerjax.models.decoder_layers import PROJECTIONS
from routerjax.models.linear import FLOAT32

DecoderType = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]


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
