"""Losses and outcome probabilities of a battle, given the margin of two scores. Pure, element-wise, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.typing import PreferenceBatch, Sides

# Below this, softplus(tie) and 1 - exp(-2 softplus(tie)) / 2 are exp(tie) in float32.
SMALL_TIE = -17.0


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


def rao_kupper_log_prob(
    margin: Float[Array, "*battles"], tie: Float[Array, "*battles"]
) -> Float[Array, "*battles outcomes"]:
    """Log-probabilities of (a wins, tie, b wins) under Rao and Kupper's model.

    ``P(a wins) = sigmoid(margin - t)``, ``P(b wins) = sigmoid(-margin - t)``, a tie otherwise; ``t = softplus(tie)``.

    Args:
        margin: positive favours model_a, in nats.
        tie: any real; the threshold ``t`` is its softplus, in nats.

    Example:
        >>> jnp.exp(rao_kupper_log_prob(jnp.float32(0.0), jnp.float32(0.0))).round(4).tolist()
        [0.33329999446868896, 0.33329999446868896, 0.33329999446868896]

    Reference:
        Rao and Kupper, "Ties in paired-comparison experiments", JASA 1967; ``theta = exp(t)``.
    """
    margin, tie = jnp.broadcast_arrays(margin.astype(jnp.float32), tie.astype(jnp.float32))
    threshold = jax.nn.softplus(tie)
    win, loss = jax.nn.log_sigmoid(margin - threshold), jax.nn.log_sigmoid(-margin - threshold)
    # 1 - P(a) - P(b) = (exp(2 t) - 1) P(a) P(b), without the cancellation. A threshold too small for float32 is
    # exp(tie), whose logarithm is finite.
    is_small = tie < SMALL_TIE
    usual = jnp.log(-jnp.expm1(-2.0 * jnp.where(is_small, 1.0, threshold)))
    drawn = win + loss + 2.0 * threshold + jnp.where(is_small, jnp.log(2.0) + tie, usual)
    return jnp.stack([win, drawn, loss], axis=-1)


def davidson_log_prob(
    margin: Float[Array, "*battles"], tie: Float[Array, "*battles"]
) -> Float[Array, "*battles outcomes"]:
    """Log-probabilities of (a wins, tie, b wins) under Davidson's model.

    ``P(a) : P(tie) : P(b) = exp(margin / 2) : exp(tie) : exp(-margin / 2)``

    Args:
        margin: positive favours model_a, in nats.
        tie: log-odds of a tie against a win of one of two equals.

    Example:
        >>> jnp.exp(davidson_log_prob(jnp.float32(0.0), jnp.float32(0.0))).round(4).tolist()
        [0.33329999446868896, 0.33329999446868896, 0.33329999446868896]

    Reference:
        Davidson, "On extending the Bradley-Terry model to accommodate ties", JASA 1970; ``nu = exp(tie)``.
    """
    margin, tie = jnp.broadcast_arrays(margin.astype(jnp.float32), tie.astype(jnp.float32))
    return jax.nn.log_softmax(jnp.stack([margin / 2.0, tie, -margin / 2.0], axis=-1), axis=-1)


def margin(scores: Float[Array, "prompts outputs"], battles: PreferenceBatch | Sides) -> Float[Array, "battles"]:
    """Score of each battle's model_a minus that of its model_b; positive favours model_a."""
    return scores[battles.query_index, battles.model_a] - scores[battles.query_index, battles.model_b]
