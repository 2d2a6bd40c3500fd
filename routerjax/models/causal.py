"""The causal language model as a router."""

from __future__ import annotations

from typing import Literal, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.models.decoder import Decoder
from routerjax.models.flops import CountsTextFlops
from routerjax.models.linear import Linear
from routerjax.typing import Query


class CausalRouter(CountsTextFlops, nn.Module):
    """The causal language model as a router: scores from the hidden state of the prompt's last token.

    Heads: ``tokens`` are the logits of as many label tokens at the end of the vocabulary, one forward pass for all of
    them, without the logits of any other token. ``linear`` is a linear layer.

    Attributes:
        encoder: what makes the hidden states.
        num_models: columns of the scores.
        head: ``tokens`` or ``linear``.
        use_bias: the linear layer has a bias. The classifiers of transformers have none.

    Reference:
        RouteLLM (arXiv 2406.18665), section 4.1; Frick et al., "Prompt-to-Leaderboard" (arXiv 2502.14855).
    """

    encoder: Decoder
    num_models: int
    head: Literal["tokens", "linear"] = "linear"
    use_bias: bool = True

    @property
    def reads_last_token(self) -> bool:
        """Return True: of the last layer only the hidden state of each row's last token is read."""
        return True

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch outputs"]:
        """Score ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; float32."""
        config = self.encoder.config
        last = self.encoder(query, deterministic=deterministic, last_only=True)[:, 0].astype(jnp.float32)
        if self.head == "linear":
            size, axes, spread = self.num_models, ("embed", "models"), config.initializer_range
            return Linear(size, axes, spread, use_bias=self.use_bias, name="classifier")(last)
        initializer = nn.with_logical_partitioning(
            nn.initializers.normal(config.initializer_range), ("models", "embed")
        )
        labels = cast(Array, self.param("label_embedding", initializer, (self.num_models, config.width), jnp.float32))
        logits = last @ labels.T
        return config.logit_cap * jnp.tanh(logits / config.logit_cap) if config.logit_cap else logits
