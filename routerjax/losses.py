"""Losses on preferences, and the readouts that turn scores into probabilities. Pure, element-wise, in nats.

Every loss is a model of how a battle ends, given the margin of two scores and, where the model knows ties, a tie score:

- ``bradley_terry``: a tie is half a win to each side; nothing is said of how likely ties are.
- ``rao_kupper``: a battle is a tie where the margin, plus logistic noise, is small: one threshold, learned.
- ``davidson``: a tie has odds of its own against the geometric mean of the two wins: one number, learned.
- ``three_outcome``: Davidson's, with a tie score of each query, a column more beside the models'. For a fixed pair this
  is a softmax over win, tie and loss with three free logits.
- ``three_labels``: the columns are not models but win, tie and loss of ONE pair: RouteLLM's released classifiers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.errors import choose
from routerjax.typing import PreferenceBatch, PreferenceLoss, Readout

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


def _bradley_terry_log_prob(margin: Float[Array, "*battles"], _: Float[Array, "*battles"]) -> Array:
    """Ties are no outcome of their own: P(tie) = 0, and half of every tie is in P(a) and P(b)."""
    margin = margin.astype(jnp.float32)
    never = jnp.full_like(margin, -jnp.inf)
    return jnp.stack([jax.nn.log_sigmoid(margin), never, jax.nn.log_sigmoid(-margin)], axis=-1)


def _cross_entropy(outcome: Float[Array, "*battles 3"], log_prob: Float[Array, "*battles 3"]) -> Array:
    return -jnp.sum(outcome.astype(jnp.float32) * log_prob, axis=-1)


class OutcomeModel(NamedTuple):
    """Model of how a battle ends.

    Attributes:
        log_prob: ``(margin, tie) -> log P(a wins), log P(tie), log P(b wins)``; None where scores are those already.
        tie: where the tie score comes from: nowhere; one learned ``parameter``; a ``column`` beside the models'; or
            the columns are the three ``labels`` themselves.
    """

    log_prob: Callable[[Array, Array], Array] | None
    tie: Literal["none", "parameter", "column", "labels"]


LOSSES: Mapping[str, OutcomeModel] = {
    "bradley_terry": OutcomeModel(_bradley_terry_log_prob, "none"),
    "rao_kupper": OutcomeModel(rao_kupper_log_prob, "parameter"),
    "davidson": OutcomeModel(davidson_log_prob, "parameter"),
    "three_outcome": OutcomeModel(davidson_log_prob, "column"),
    "three_labels": OutcomeModel(None, "labels"),
}

READOUTS: Mapping[str, Callable[[Array], Array]] = {
    # Half of the ties to each side: (1 + expected gain) / 2.
    "half_tie": lambda log_prob: jnp.exp(log_prob[..., 0]) + jnp.exp(log_prob[..., 1]) / 2.0,
    # A tie is no win: RouteLLM's released classifiers.
    "win": lambda log_prob: jnp.exp(log_prob[..., 0]),
    # Ties left out: P(win | not a tie), which does not depend on how small P(not a tie) is.
    "decisive": lambda log_prob: jax.nn.sigmoid(log_prob[..., 0] - log_prob[..., 2]),
}
"""From log P(a wins), log P(tie), log P(b wins) to a win probability. ``half_tie`` orders prompts by expected gain."""


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


def outcome_model(loss: str) -> OutcomeModel:
    """Look up a loss in :data:`LOSSES`.

    Raises:
        InputError: no such loss; suggests the nearest.
    """
    return choose(loss, LOSSES, "the loss")


def make_preference_loss(loss: str) -> PreferenceLoss:
    """The loss of each battle of a batch, before its weight: cross-entropy of the battle's outcome distribution.

    ``(scores, batch) -> loss [battles]`` in nats. For ``bradley_terry`` it is :func:`preference_loss`. For
    ``three_labels``, whose columns are win, tie and loss of the pair (model 0, model 1), battles the other way round
    are read backwards.

    Args:
        loss: a name in :data:`LOSSES`.

    Raises:
        InputError: no such loss.
    """
    model = outcome_model(loss)
    if loss == "bradley_terry":
        return preference_loss

    def of_battles(scores: Float[Array, "prompts columns"], batch: PreferenceBatch) -> Float[Array, "battles"]:
        if model.log_prob is None:
            log_prob = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)[batch.query_index]
            forward = (batch.model_a < batch.model_b)[:, None]
            return _cross_entropy(jnp.where(forward, batch.outcome, batch.outcome[:, ::-1]), log_prob)
        return _cross_entropy(batch.outcome, model.log_prob(margin(scores, batch), scores[batch.query_index, -1]))

    return of_battles


@functools.cache
def make_outcome_prob(loss: str) -> Callable[[Array, int, int], Array]:
    """``(scores, strong, weak) -> P(strong wins), P(tie), P(weak wins)``, float32 ``[batch, 3]``.

    The expected gain of calling the strong model is the first minus the last. Under ``bradley_terry`` P(tie) is 0.

    Args:
        loss: the loss that the scores were trained with.

    Raises:
        InputError: no such loss.
    """
    log_prob = _make_outcome_log_prob(loss)
    return lambda scores, strong, weak: jnp.exp(log_prob(scores, strong, weak))


def _make_outcome_log_prob(loss: str) -> Callable[[Array, int, int], Array]:
    model = outcome_model(loss)

    def log_prob(scores: Float[Array, "batch columns"], strong: int, weak: int) -> Float[Array, "batch 3"]:
        scores = scores.astype(jnp.float32)
        if model.log_prob is None:
            of_labels = jax.nn.log_softmax(scores, axis=-1)
            return of_labels if strong < weak else of_labels[:, ::-1]
        return model.log_prob(scores[:, strong] - scores[:, weak], scores[:, -1])

    return log_prob


@functools.cache
def make_readout(loss: str, readout: str = "half_tie") -> Readout:
    """Make the readout from scores to win probability: ``(scores, strong, weak) -> win_prob [batch]``.

    The same names give the same function, so that what is compiled for it is found again.

    Args:
        loss: the loss that the scores were trained with.
        readout: a name in :data:`READOUTS`. Under ``bradley_terry`` all of them are sigmoid(margin).

    Raises:
        InputError: no such loss or readout.

    Example:
        >>> read = make_readout("bradley_terry")
        >>> float(read(jnp.array([[jnp.log(3.0), 0.0]]), 0, 1)[0]).__round__(4)
        0.75
    """
    read, log_prob = choose(readout, READOUTS, "the readout"), _make_outcome_log_prob(loss)

    def win_prob(scores: Float[Array, "batch columns"], strong: int, weak: int) -> Float[Array, "batch"]:
        return read(log_prob(scores, strong, weak))

    return bradley_terry_readout if loss == "bradley_terry" else win_prob


def bradley_terry_readout(scores: Float[Array, "batch models"], strong: int, weak: int) -> Float[Array, "batch"]:
    """P(strong beats weak) = sigmoid(score of strong - score of weak); a :data:`routerjax.typing.Readout`."""
    return jax.nn.sigmoid((scores[:, strong] - scores[:, weak]).astype(jnp.float32))
