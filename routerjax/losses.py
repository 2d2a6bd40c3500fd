"""Losses and outcome probabilities of a battle, given the margin of two scores. Pure, element-wise, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.typing import PreferenceBatch, Sides

# The grounded form's theta is 1 + exp(tie) + LEAST_TIE: P(tie) stays above 0 however low the tie score is.
LEAST_TIE = 1e-6


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
    # 1 - P(a) - P(b) = sigmoid(t - margin) sigmoid(t + margin) (1 - exp(-2 t)), without the cancellation, and
    # exp(-t) = sigmoid(-tie), also where t is too small for float32.
    sure = jax.nn.log_sigmoid(tie) + jnp.log1p(jax.nn.sigmoid(-tie))
    drawn = jax.nn.log_sigmoid(threshold - margin) + jax.nn.log_sigmoid(threshold + margin) + sure
    return jnp.stack([win, drawn, loss], axis=-1)


def grounded_rao_kupper_log_prob(
    score_a: Float[Array, "*battles"], score_b: Float[Array, "*battles"], tie: Float[Array, "*battles"]
) -> Float[Array, "*battles outcomes"]:
    """Log-probabilities of (a wins, tie, b wins, both bad) under P2L's grounded form of Rao and Kupper's model.

    An answer that is just usable has the score 0. With ``pi = exp(score)`` and ``theta = 1 + exp(tie) + 1e-6``,
    ``P(a wins) = pi_a / (pi_a + theta pi_b + 1)``, ``P(b wins)`` likewise, ``P(both bad) = 1 / (1 + pi_a + pi_b)``,
    and a tie otherwise.

    Args:
        score_a, score_b: of the two models, in nats.
        tie: any real; the higher, the likelier are ties of good answers.

    Example:
        >>> zero = jnp.zeros(())
        >>> [round(float(prob), 4) for prob in jnp.exp(grounded_rao_kupper_log_prob(zero, zero, zero))]
        [0.25, 0.1667, 0.25, 0.3333]

    Reference:
        Frick et al., "Prompt-to-Leaderboard", arXiv 2502.14855; the loss ``bag`` of its code, without its clipping of
        probabilities at 1e-6.
    """
    a, b, tie = jnp.broadcast_arrays(*(term.astype(jnp.float32) for term in (score_a, score_b, tie)))
    # A softmax of a, b and neither gives shares pi / (pi_a + pi_b + 1), of which ties take a part of a's and of b's:
    # P(a wins) = share_a / (1 + (theta - 1) share_b), so the part is sigmoid(log(theta - 1) + log share_b).
    share_a, share_b, both_bad = jnp.moveaxis(jax.nn.log_softmax(jnp.stack([a, b, jnp.zeros_like(a)], axis=-1)), -1, 0)
    excess = jnp.logaddexp(tie, jnp.log(LEAST_TIE))
    win, drawn_a = (share_a + jax.nn.log_sigmoid(sign * (excess + share_b)) for sign in (-1.0, 1.0))
    loss, drawn_b = (share_b + jax.nn.log_sigmoid(sign * (excess + share_a)) for sign in (-1.0, 1.0))
    return jnp.stack([win, jnp.logaddexp(drawn_a, drawn_b), loss, both_bad], axis=-1)


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
