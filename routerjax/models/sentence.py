"""Sentence embeddings: the hidden states of an encoder pooled to one vector, and layers after that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from routerjax.config import Pooling
from routerjax.models.decoder import Decoder
from routerjax.models.encoders import Encoder
from routerjax.models.flops import CountsTextFlops
from routerjax.models.layers import MASKED, gelu, last_token, layer_norm, mean_over_tokens, unit_length
from routerjax.models.linear import Linear
from routerjax.scoring import mode
from routerjax.typing import Query

Hidden = Float[Array, "batch length embed"]
Mask = Bool[Array, "batch length"]
Embedding = Float[Array, "batch embed"]

Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid"]


def _max(hidden: Hidden, is_token: Mask) -> Embedding:
    return jnp.where(is_token[..., None], hidden, MASKED).max(axis=1)


def _mean_sqrt_len(hidden: Hidden, is_token: Mask) -> Embedding:
    return mean_over_tokens(hidden, is_token) * jnp.sqrt(is_token.sum(axis=1, keepdims=True).astype(jnp.float32))


def _weighted_mean(hidden: Hidden, is_token: Mask) -> Embedding:
    weight = is_token * jnp.cumsum(is_token, axis=1).astype(jnp.float32)
    return jnp.einsum("ble,bl->be", hidden, weight) / jnp.maximum(weight.sum(axis=1), 1.0)[:, None]


# Rows are padded on the right, so that the first token is at 0.
POOLINGS: Mapping[Pooling, Callable[[Hidden, Mask], Embedding]] = {
    "cls": lambda hidden, is_token: hidden[:, 0],
    "max": _max,
    "mean": mean_over_tokens,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": last_token,
}
ACTIVATIONS: Mapping[Activation, Callable[[Embedding], Embedding]] = {
    "identity": lambda embedding: embedding,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": gelu,
    "sigmoid": jax.nn.sigmoid,
}


class Projection(nn.Module):
    """A dense layer and its activation, sentence-transformers' ``Dense``.

    Attributes:
        features: width of what comes out.
        activation: a name in :data:`ACTIVATIONS`.
        use_bias: add a bias before the activation.
    """

    features: int
    activation: Activation = "tanh"
    use_bias: bool = True

    @nn.compact
    def __call__(self, embedding: Embedding) -> Float[Array, "batch features"]:
        """Project embeddings, float32."""
        linear = Linear(self.features, ("embed", "mlp"), 0.02, use_bias=self.use_bias, name="linear")
        return ACTIVATIONS[self.activation](linear(embedding))


class EmbeddingNorm(nn.Module):
    """Layer norm of embeddings, sentence-transformers' ``LayerNorm``."""

    @nn.compact
    def __call__(self, embedding: Embedding) -> Embedding:
        """Normalise to mean 0 and variance 1, then scale and shift."""
        return layer_norm(epsilon=1e-5, name="norm")(embedding)


class Normalize(nn.Module):
    """Embeddings of unit length, sentence-transformers' ``Normalize``."""

    @nn.compact
    def __call__(self, embedding: Embedding) -> Embedding:
        """Divide by the length."""
        return unit_length(embedding)


EMBEDDING_LAYERS: Mapping[str, type[Projection] | type[EmbeddingNorm] | type[Normalize]] = {
    "projection": Projection,
    "layer_norm": EmbeddingNorm,
    "normalize": Normalize,
}


class SentenceEmbedding(nn.Module):
    """Sentence embedding, one vector of a text: hidden states, pooled, then passed through layers.

    Attributes:
        encoder: what makes the hidden states.
        pooling: how they become one vector: names in :data:`POOLINGS`, whose vectors are concatenated. ``cls`` is the
            first token, ``weightedmean`` weights each token by its position.
        layers: what is applied to that vector, in this order: modules of :data:`EMBEDDING_LAYERS`.

    Reference:
        The modules of sentence-transformers, https://sbert.net.
    """

    encoder: Encoder
    pooling: tuple[Pooling, ...] = ("mean",)
    layers: tuple[Projection | EmbeddingNorm | Normalize, ...] = ()

    @property
    def width(self) -> int:
        """Width of the embedding."""
        widths = [layer.features for layer in self.layers if isinstance(layer, Projection)]
        return widths[-1] if widths else len(self.pooling) * self.encoder.width

    @property
    def reads_last_token(self) -> bool:
        """Return True if of the last layer only the hidden state of each row's last token is read."""
        return isinstance(self.encoder, Decoder) and self.pooling == ("lasttoken",)

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Embedding:
        """Embed ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; float32."""
        if self.reads_last_token:
            decoder = cast(Decoder, self.encoder)
            embedding = decoder(query, deterministic=deterministic, last_only=True)[:, 0].astype(jnp.float32)
        else:
            hidden = self.encoder(query, deterministic=deterministic).astype(jnp.float32)
            is_token = query["attention_mask"] > 0
            embedding = jnp.concatenate([POOLINGS[name](hidden, is_token) for name in self.pooling], axis=-1)
        for layer in self.layers:
            embedding = layer(embedding)
        return embedding


class EmbedThen(CountsTextFlops, nn.Module):
    """Router of embeddings on top of the encoder that makes them: one module, fine-tuned end to end.

    Attributes:
        encoder: text to embedding.
        head: any router of embeddings, such as :class:`routerjax.models.MatrixFactorization`.
    """

    encoder: SentenceEmbedding
    head: nn.Module

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch models"]:
        """Score every model on ``token_ids`` and ``attention_mask``; ``prompt_id``, where present, goes to the head."""
        passed_on = {name: leaf for name, leaf in query.items() if name == "prompt_id"}
        embedding = self.encoder(query, deterministic=deterministic)
        return self.head({"embedding": embedding, **passed_on}, **mode(self.head, deterministic))
