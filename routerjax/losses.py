"""Losses on preferences, and the readouts that turn scores into win probabilities. Pure, element-wise, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.typing import PreferenceBatch


def bradley_terry(margin: Float[Array, "*battles"], label: Float[Array, "*battles"]) -> Float[Array, "*battles"]:
    """Negative log-likelihood of a battle under Bradley-Terry.

    ``loss = -label * log sigmoid(margin) - (1 - label) * log sigmoid(-margin)``

    A soft label is a mixture of outcomes; a tie is a label of one half. The minimum over the margin is the label's own
    entropy, at ``margin = logit(label)``.

    Args:
        margin: score of model_a minus score of model_b, any real; positive favours model_a.
        label: P(model_a is better) in [0, 1].

    Returns:
        Loss in nats, float32, finite for every finite margin.

    Example:
        >>> float(bradley_terry(jnp.float32(0.0), jnp.float32(1.0))).__round__(4)
        0.6931

    Reference:
        Bradley and Terry, "Rank analysis of incomplete block designs", Biometrika 1952;
        RouteLLM (arXiv 2406.18665), equation 1.
    """
    margin = margin.astype(jnp.float32)
    label = label.astype(jnp.float32)
    return -label * jax.nn.log_sigmoid(margin) - (1.0 - label) * jax.nn.log_sigmoid(-margin)


def margin(scores: Float[Array, "prompts models"], batch: PreferenceBatch) -> Float[Array, "battles"]:
    """Score of each battle's model_a minus that of its model_b; positive favours model_a."""
    return scores[batch.query_index, batch.model_a] - scores[batch.query_index, batch.model_b]


def preference_loss(scores: Float[Array, "prompts models"], batch: PreferenceBatch) -> Float[Array, "battles"]:
    """Bradley-Terry loss of each battle of a batch, before its weight; a :data:`routerjax.typing.PreferenceLoss`.

    Args:
        scores: one row for each query of ``batch``, in nats.
        batch: the battles.
    """
    return bradley_terry(margin(scores, batch), batch.label)


def bradley_terry_readout(scores: Float[Array, "batch models"], strong: int, weak: int) -> Float[Array, "batch"]:
    """P(strong beats weak) = sigmoid(score of strong - score of weak); a :data:`routerjax.typing.Readout`."""
    return jax.nn.sigmoid((scores[:, strong] - scores[:, weak]).astype(jnp.float32))
