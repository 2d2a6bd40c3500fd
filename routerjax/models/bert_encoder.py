"""The encoder of BERT and its relatives: tokens to hidden states."""

from __future__ import annotations

import operator
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Bool, Float, Int

from routerjax.config import Count, Fraction, NonNegative, Whole
from routerjax.models.layers import (
    BUCKET_STARTS,
    SelfAttention,
    gelu,
    layer_norm,
    relative_buckets,
)
from routerjax.models.linear import Linear, rows_of_table
from routerjax.typing import PyTree, Query

ModelType = Literal["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet"]
# They count positions and classify as RoBERTa does.
ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet")


class BertLayer(nn.Module):
    """Attention and a two-layer MLP, each added to its input and then normalised."""

    num_heads: int
    mlp_dim: int
    layer_norm_epsilon: float
    dropout_rate: float
    attention_dropout_rate: float
    initializer_range: float
    dtype: jnp.dtype
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "tokens embed"],
        is_token: Bool[Array, "batch length"],
        position_bias: Float[Array, "heads query key"] | None,
    ) -> Float[Array, "tokens embed"]:
        """Apply one layer to tokens that lie flat, ``[batch * length, embed]``."""
        hidden = spmd.with_logical_constraint(hidden, ("batch", "embed"))
        dropout = nn.Dropout(self.dropout_rate, deterministic=self.deterministic)
        attended = SelfAttention(
            self.num_heads,
            dropout_rate=self.attention_dropout_rate,
            initializer_range=self.initializer_range,
            dtype=self.dtype,
            name="attention",
        )(hidden, is_token, position_bias, deterministic=self.deterministic)
        hidden = layer_norm(epsilon=self.layer_norm_epsilon, name="attention_norm")(hidden + dropout(attended))
        wide = Linear(self.mlp_dim, ("embed", "mlp"), self.initializer_range, self.dtype, name="mlp_in")(hidden)
        width, axes = hidden.shape[-1], ("mlp", "embed")
        narrow = Linear(width, axes, self.initializer_range, self.dtype, name="mlp_out")(gelu(wide))
        hidden = layer_norm(epsilon=self.layer_norm_epsilon, name="mlp_norm")(hidden + dropout(narrow))
        return spmd.with_logical_constraint(hidden, ("batch", "embed"))


class BertEncoder(nn.Module):
    """Token ids to hidden states; the attributes are those of a Hugging Face ``config.json``.

    One module is BERT, MiniLM, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT and MPNet. They differ in the positions,
    which all but BERT and DistilBERT count from ``padding_id + 1`` on, over the tokens that are not padding; in the
    token types, of which DistilBERT and MPNet have none; in the attention, to which MPNet adds a bias of the distance
    between two tokens, one table for all layers; and in the head of :class:`BertRouter`.

    Attributes:
        vocab_size: rows of the token table.
        width: of the hidden states.
        num_layers, num_heads, mlp_dim: of the transformer.
        max_positions: rows of the position table; the longest input is :attr:`max_length`.
        model_type: as Hugging Face names the architecture.
        padding_id: the token that stands for padding.
        num_token_types: rows of the token-type table, of which a prompt uses the first; 0 for no table.
        dropout_rate, attention_dropout_rate: of the hidden states, and of the attention weights. Unlike transformers'
            DistilBERT, which has none there, what attention adds is dropped out too.
        layer_norm_epsilon, initializer_range: as their names say.
        dtype: of the matmuls; norms and softmax are in float32, parameters are stored in float32.
        remat: compute each layer again in the backward pass, instead of keeping its activations.
        scan_layers: compile one layer and scan over parameters that are stacked on a leading axis ``layers``; see
            :func:`stack_layers`.

    Reference:
        Devlin et al., "BERT" (arXiv 1810.04805); Liu et al., "RoBERTa" (arXiv 1907.11692); Conneau et al., "XLM-R"
        (arXiv 1911.02116); Martin et al., "CamemBERT" (arXiv 1911.03894); Sanh et al., "DistilBERT" (arXiv
        1910.01108); Song et al., "MPNet" (arXiv 2004.09297).
    """

    vocab_size: Count
    width: Count
    num_layers: Count
    num_heads: Count
    mlp_dim: Count
    max_positions: Count
    model_type: ModelType = "bert"
    padding_id: Whole = 0
    num_token_types: Whole = 2
    dropout_rate: Fraction = 0.1
    attention_dropout_rate: Fraction = 0.1
    layer_norm_epsilon: NonNegative = 1e-12
    initializer_range: NonNegative = 0.02
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: bool = False
    scan_layers: bool = False

    @property
    def max_length(self) -> int:
        """The longest input in tokens."""
        return self.max_positions - (self.padding_id + 1 if self._counts_positions else 0)

    @property
    def _counts_positions(self) -> bool:
        return self.model_type in ROBERTA_LIKE

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch length embed"]:
        """Encode ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; the mask is 0 on padding."""
        token_ids, is_token = query["token_ids"], query["attention_mask"] > 0
        batch, length = token_ids.shape
        hidden = rows_of_table(self._table("token_embedding", self.vocab_size, "vocab"), token_ids)
        added = self._positions(token_ids, is_token)
        if self.num_token_types > 0:
            added = added + self._table("token_type_embedding", self.num_token_types, "token_types")[None, :1]
        # Tokens lie flat, [batch * length, embed], so that each projection is one matmul.
        hidden = layer_norm(epsilon=self.layer_norm_epsilon, name="embedding_norm")(hidden + added)
        hidden = nn.Dropout(self.dropout_rate, deterministic=deterministic)(hidden.reshape(-1, self.width))
        position_bias = self._position_bias(length) if self.model_type == "mpnet" else None

        def layer(name: str) -> BertLayer:
            layer_class = nn.remat(BertLayer, prevent_cse=not self.scan_layers) if self.remat else BertLayer
            return layer_class(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                layer_norm_epsilon=self.layer_norm_epsilon,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                initializer_range=self.initializer_range,
                dtype=self.dtype,
                deterministic=deterministic,
                name=name,
            )

        if self.scan_layers:
            scan = nn.scan(
                lambda one, carry, _: (one(carry, is_token, position_bias), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            hidden, _ = scan(layer("layers"), hidden, None)
        else:
            for index in range(self.num_layers):
                hidden = layer(f"layer_{index}")(hidden, is_token, position_bias)
        return hidden.reshape(batch, length, self.width)

    def _table(self, name: str, rows: int, axis: str) -> Float[Array, "rows embed"]:
        initializer = nn.initializers.normal(self.initializer_range)
        partitioned = nn.with_logical_partitioning(initializer, (axis, "embed"))
        return cast(Array, self.param(name, partitioned, (rows, self.width)))

    def _positions(
        self, token_ids: Int[Array, "batch length"], is_token: Bool[Array, "batch length"]
    ) -> Float[Array, "rows length embed"]:
        """Position embeddings; one row for all, or a row for each where positions are counted."""
        table, length = self._table("position_embedding", self.max_positions, "length"), token_ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"this encoder reads at most {self.max_length} tokens, got {length}")
        if not self._counts_positions:
            return table[None, :length]
        # Unlike transformers, what stands under the mask is never counted, so that it cannot matter.
        counted = (is_token & (token_ids != self.padding_id)).astype(jnp.int32)
        return rows_of_table(table, self.padding_id + jnp.cumsum(counted, axis=1) * counted)

    def _position_bias(self, length: int) -> Float[Array, "heads query key"]:
        """Attention bias of the distance between two tokens."""
        initializer = nn.with_logical_partitioning(
            nn.initializers.normal(self.initializer_range), ("distance", "heads")
        )
        table = cast(Array, self.param("distance_bias", initializer, (2 * len(BUCKET_STARTS) + 2, self.num_heads)))
        return table[relative_buckets(length)].transpose(2, 0, 1)


def stack_layers(params: PyTree) -> PyTree:
    """Parameters of a :class:`BertEncoder` in the form of ``scan_layers``: ``layer_0`` ... become ``layers``."""
    names = [f"layer_{index}" for index in range(sum(name.startswith("layer_") for name in params))]
    rest = {name: leaf for name, leaf in params.items() if name not in names}
    return {**rest, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))}


def unstack_layers(params: PyTree) -> PyTree:
    """The inverse of :func:`stack_layers`."""
    rest = {name: leaf for name, leaf in params.items() if name != "layers"}
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = {f"layer_{index}": jax.tree.map(operator.itemgetter(index), params["layers"]) for index in range(count)}
    return {**rest, **layers}
