"""The BERT classifier as a router."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.config import Fraction
from routerjax.models.bert_encoder import ROBERTA_LIKE, BertEncoder
from routerjax.models.flops import CountsTextFlops
from routerjax.models.layers import mean_over_tokens
from routerjax.models.linear import Linear
from routerjax.typing import Query


class BertRouter(CountsTextFlops, nn.Module):
    """The BERT classifier: a head on the encoder's hidden states gives a score to each model.

    Heads: ``architecture`` computes what Hugging Face's ``*ForSequenceClassification`` of the encoder's ``model_type``
    does, a dense layer with tanh (DistilBERT: ReLU) on the first token, then the classifier; it alone can be exported
    to Hugging Face. ``linear`` is the paper's ``W h_CLS + b``. ``mean`` is linear on the mean over the tokens.

    Attributes:
        encoder: what makes the hidden states.
        num_models: columns of the scores; 3 under the loss ``three_labels``, the logits of (strong wins, tie, weak
            wins).
        head: ``architecture``, ``linear`` or ``mean``.
        dropout_rate: before the classifier, and before RoBERTa's dense layer.

    Reference:
        RouteLLM (arXiv 2406.18665), section 4.1.
    """

    encoder: BertEncoder
    num_models: int
    head: Literal["architecture", "linear", "mean"] = "architecture"
    dropout_rate: Fraction = 0.1

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch outputs"]:
        """Score ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; float32."""
        encoder = self.encoder
        dropout = nn.Dropout(self.dropout_rate, deterministic=deterministic)
        hidden = encoder(query, deterministic=deterministic)
        pooled = (
            mean_over_tokens(hidden, query["attention_mask"] > 0)
            if self.head == "mean"
            else hidden[:, 0].astype(jnp.float32)
        )

        def linear(features: int, axes: tuple[str, str], name: str) -> Linear:
            return Linear(features, axes, encoder.initializer_range, name=name)

        if self.head == "architecture":
            if encoder.model_type in ROBERTA_LIKE:
                pooled = dropout(pooled)
            activation = jax.nn.relu if encoder.model_type == "distilbert" else jnp.tanh
            pooled = activation(linear(encoder.width, ("embed", "mlp"), "dense")(pooled))
        return linear(self.num_models, ("embed", "models"), "classifier")(dropout(pooled))
