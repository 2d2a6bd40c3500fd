"""BERT's encoder, and the sentence embedding made of it."""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from routerjax.models.layers import SelfAttention, dense, layer_norm
from routerjax.typing import Query

# Lengths below this are taken as this when an embedding is normalised, as torch's normalize does.
SMALLEST_NORM = 1e-12


class BertLayer(nn.Module):
    """Attention and a two-layer MLP, each added to its input and then normalised."""

    num_heads: int
    mlp_dim: int
    layer_norm_epsilon: float
    dropout_rate: float
    initializer_range: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "tokens embed"], is_token: Bool[Array, "batch length"], *, deterministic: bool
    ) -> Float[Array, "tokens embed"]:
        """One layer on tokens that lie flat, ``[batch * length, embed]``."""
        dropout = nn.Dropout(self.dropout_rate, deterministic=deterministic)
        attended = SelfAttention(
            self.num_heads, initializer_range=self.initializer_range, dtype=self.dtype, name="attention"
        )(hidden, is_token)
        hidden = layer_norm(epsilon=self.layer_norm_epsilon, name="attention_norm")(hidden + dropout(attended))
        wide = dense(
            self.mlp_dim, ("embed", "mlp"), name="mlp_in", initializer_range=self.initializer_range, dtype=self.dtype
        )(hidden)
        narrow = dense(
            hidden.shape[-1],
            ("mlp", "embed"),
            name="mlp_out",
            initializer_range=self.initializer_range,
            dtype=self.dtype,
        )(jax.nn.gelu(wide, approximate=False))
        return layer_norm(epsilon=self.layer_norm_epsilon, name="mlp_norm")(hidden + dropout(narrow))


class BertEncoder(nn.Module):
    """Token ids to hidden states; the attributes are those of a Hugging Face BERT's ``config.json``.

    Attributes:
        vocab_size: rows of the token table.
        width: of the hidden states.
        num_layers, num_heads, mlp_dim: of the transformer.
        max_positions: the longest input in tokens.
        num_token_types: rows of the token-type table, of which a prompt uses the first.
        layer_norm_epsilon, dropout_rate, initializer_range: as their names say.
        dtype: of the matmuls; norms and softmax are in float32, parameters are stored in float32.

    Reference:
        Devlin et al., "BERT" (arXiv 1810.04805).
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    max_positions: int
    num_token_types: int = 2
    layer_norm_epsilon: float = 1e-12
    dropout_rate: float = 0.1
    initializer_range: float = 0.02
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch length embed"]:
        """Encode ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; the mask is 0 on padding."""
        token_ids, is_token = query["token_ids"], query["attention_mask"] > 0
        batch, length = token_ids.shape

        def table(name: str, rows: int, axis: str) -> Float[Array, "rows embed"]:
            initializer = nn.initializers.normal(self.initializer_range)
            partitioned = nn.with_logical_partitioning(initializer, (axis, "embed"))
            return cast(Array, self.param(name, partitioned, (rows, self.width)))

        token_table = table("token_embedding", self.vocab_size, "vocab")
        position_table = table("position_embedding", self.max_positions, "length")
        type_table = table("token_type_embedding", self.num_token_types, "token_types")
        hidden = token_table[token_ids] + (position_table[:length] + type_table[:1])[None]
        # Tokens lie flat, [batch * length, embed], so that each projection is one matmul.
        hidden = layer_norm(epsilon=self.layer_norm_epsilon, name="embedding_norm")(hidden).reshape(-1, self.width)
        hidden = nn.Dropout(self.dropout_rate, deterministic=deterministic)(hidden)
        for index in range(self.num_layers):
            hidden = BertLayer(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                layer_norm_epsilon=self.layer_norm_epsilon,
                dropout_rate=self.dropout_rate,
                initializer_range=self.initializer_range,
                dtype=self.dtype,
                name=f"layer_{index}",
            )(hidden, is_token, deterministic=deterministic)
        return hidden.reshape(batch, length, self.width)


class SentenceEmbedding(nn.Module):
    """The mean of the hidden states over the tokens that are not padding.

    Attributes:
        encoder: what makes the hidden states.
        normalize: whether the mean is scaled to unit length.
    """

    encoder: BertEncoder
    normalize: bool = True

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch embed"]:
        """Embed ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; float32."""
        hidden = self.encoder(query, deterministic=deterministic).astype(jnp.float32)
        is_token = (query["attention_mask"] > 0).astype(jnp.float32)
        total = jnp.einsum("ble,bl->be", hidden, is_token)
        mean = total / jnp.maximum(is_token.sum(axis=1), 1.0)[:, None]
        if not self.normalize:
            return mean
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), SMALLEST_NORM)
