"""Likelihoods: how a battle ends, given a router's scores. Training, scoring and export ask for nothing else.

- ``bradley_terry``: a tie is half a win to each side; nothing is said of how likely ties are.
- ``rao_kupper``: a battle is a tie where the margin, plus logistic noise, is small: one threshold, learned.
- ``davidson``: a tie has odds of its own against the geometric mean of the two wins: one number, learned.
- ``three_outcome``: Davidson's, with a tie score of each prompt, an output more beside the models'. For a fixed pair
  this is a softmax over win, tie and loss with three free logits.
- ``rao_kupper_by_prompt``: Rao and Kupper's, with a threshold of each prompt, from such an output.
- ``grounded_rao_kupper``: likewise, and with a fourth outcome, that both answers are bad: scores have a zero.
- ``three_labels``: the outputs are not models but win, tie and loss of ONE pair: RouteLLM's released classifiers.
- ``five_ratings``: likewise, the ratings from 1 to 5 of the second model's answer: RouteLLM's causal classifier.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import ConfigDict

from routerjax import losses
from routerjax.errors import InputError, choose
from routerjax.registry import Registry
from routerjax.typing import PreferenceBatch, PyTree, Sides, Variables
from routerjax.validation import from_json

COLLECTION = "likelihood"
"""The collection of a router's variables that holds the likelihood's own parameters, where it has any."""

READOUTS: Mapping[str, Callable[[Array], Array]] = {
    # Half of the ties, of either kind, to each side: (1 + expected gain) / 2.
    "half_tie": lambda log_prob: jnp.exp(log_prob[..., 0]) + jnp.sum(jnp.exp(log_prob[..., 1::2]), axis=-1) / 2.0,
    # A tie is no win: RouteLLM's released classifiers.
    "win": lambda log_prob: jnp.exp(log_prob[..., 0]),
    # Ties left out: P(win | not a tie), which does not depend on how small P(not a tie) is.
    "decisive": lambda log_prob: jax.nn.sigmoid(log_prob[..., 0] - log_prob[..., 2]),
}
"""From log P(a wins), log P(tie), log P(b wins), and log P(both bad) where there is one, to a win probability.
``half_tie`` orders prompts by expected gain."""


@dataclass(frozen=True)
class Likelihood(abc.ABC):
    """Likelihood: how a battle ends, given the scores of a router.

    A subclass has a ``name``, says :meth:`log_prob`, and overrides what else differs; its fields, if it adds any, are
    plain values, which a router keeps. All functions are pure and jit.

    Attributes:
        readout: what the win probability counts, a name in :data:`READOUTS`.

    Raises:
        InputError: no such readout; suggests the nearest.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: ClassVar[str]
    num_outcomes: ClassVar[int] = 3
    """3: a wins, tie, b wins; or 4, the last being that both answers are bad."""
    is_of_one_pair: ClassVar[bool] = False
    """If the outputs are the outcomes of one pair of models, so that no other pair can be scored."""

    readout: str = "half_tie"

    def __post_init__(self) -> None:
        choose(self.readout, READOUTS, "the readout")

    def output_names(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the scores, in their order.

        Raises:
            InputError: it is no likelihood of so many models.
        """
        return models

    def initial_params(self) -> dict[str, Array]:
        """Parameters of its own, where training starts; they are trained with the module's. Most have none."""
        return {}

    @abc.abstractmethod
    def log_prob(
        self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides
    ) -> Float[Array, "battles outcomes"]:
        """Log-probabilities of (a wins, tie, b wins) of each battle, and of both bad if it has four outcomes, float32.

        Args:
            params: its own, see :meth:`initial_params`.
            scores: in nats.
            sides: of the battles.
        """

    def loss(
        self, params: PyTree, scores: Float[Array, "prompts outputs"], batch: PreferenceBatch
    ) -> Float[Array, "battles"]:
        """Cross-entropy of each battle's outcome in nats, before its weight; finite for a tie between scores of 0.

        Where only the likelihood or only the battles have four outcomes, both bad is a tie like others.
        """
        log_prob = self.log_prob(params, scores, Sides(batch.query_index, batch.model_a, batch.model_b))
        known = batch.outcome.shape[-1]
        if self.num_outcomes < known:
            log_prob = jnp.concatenate([log_prob, log_prob[:, 1:2]], axis=-1)
        elif self.num_outcomes > known:
            log_prob = log_prob[:, :3].at[:, 1].set(jnp.logaddexp(log_prob[:, 1], log_prob[:, 3]))
        # What did not happen costs nothing, even where it never could: 0 x infinity would be NaN.
        happened = jnp.where(batch.outcome > 0, log_prob, 0.0)
        return -jnp.sum(batch.outcome.astype(jnp.float32) * happened, axis=-1)

    def outcome_prob(
        self, variables: Variables, scores: Float[Array, "batch outputs"], strong: int, weak: int
    ) -> Float[Array, "batch outcomes"]:
        """P(strong wins), P(tie), P(weak wins), and P(both bad) if it has four outcomes, float32.

        The expected gain of calling the strong model is P(strong wins) - P(weak wins).
        """
        return jnp.exp(self._pair_log_prob(variables, scores, strong, weak))

    def win_prob(
        self, variables: Variables, scores: Float[Array, "batch outputs"], strong: int, weak: int
    ) -> Float[Array, "batch"]:
        """P(the strong model is better), float32, as the readout counts ties.

        Args:
            variables: of the router, among which are the likelihood's parameters.
            scores: in nats.
            strong, weak: columns of the two models, in the order of the router's.
        """
        return READOUTS[self.readout](self._pair_log_prob(variables, scores, strong, weak))

    def label(self, outcome: Float[Array, "battles outcomes"]) -> Float[Array, "battles"]:
        """The value that the win probability of a battle should have: NaN where the readout leaves the battle out."""
        return READOUTS[self.readout](jnp.log(outcome))

    def model_scores(self, scores: Float[Array, "batch outputs"]) -> Float[Array, "batch outputs"]:
        """The scores without those that are no model's, where some are a model's."""
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {"name": self.name, **dataclasses.asdict(self)}

    def _pair_log_prob(
        self, variables: Variables, scores: Float[Array, "batch outputs"], strong: int, weak: int
    ) -> Array:
        rows = jnp.arange(scores.shape[0])
        sides = Sides(rows, jnp.full_like(rows, strong), jnp.full_like(rows, weak))
        return self.log_prob(variables.get(COLLECTION, {}), scores.astype(jnp.float32), sides)


LIKELIHOODS: Registry[type[Likelihood]] = Registry("routerjax.likelihoods")
"""Likelihoods by name; a package adds its own by an entry point ``routerjax.likelihoods``."""

register_likelihood = LIKELIHOODS.register
"""Make a likelihood known by its name, see :meth:`routerjax.registry.Registry.register`."""


@register_likelihood
class BradleyTerry(Likelihood):
    """Bradley and Terry's: P(a wins) = sigmoid(margin), and a tie is half a win to each side: all readouts are one."""

    name = "bradley_terry"

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Ties are no outcome of their own: P(tie) = 0, and half of every tie is in P(a) and P(b)."""
        del params
        margin = losses.margin(scores, sides).astype(jnp.float32)
        never = jnp.full_like(margin, -jnp.inf)
        return jnp.stack([jax.nn.log_sigmoid(margin), never, jax.nn.log_sigmoid(-margin)], axis=-1)

    def loss(self, params: PyTree, scores: Float[Array, "prompts outputs"], batch: PreferenceBatch) -> Array:
        """See :func:`routerjax.losses.bradley_terry`."""
        del params
        return losses.bradley_terry(losses.margin(scores, batch), batch.label)

    def win_prob(self, variables: Variables, scores: Float[Array, "batch outputs"], strong: int, weak: int) -> Array:
        """P(strong beats weak) = sigmoid(score of strong - score of weak)."""
        del variables
        return jax.nn.sigmoid((scores[:, strong] - scores[:, weak]).astype(jnp.float32))

    def label(self, outcome: Float[Array, "battles outcomes"]) -> Array:
        """P(a), and half of the ties."""
        return READOUTS["half_tie"](jnp.log(outcome))


BRADLEY_TERRY = BradleyTerry()
"""The likelihood where none is named."""


class _LearnedTie(Likelihood):
    """A model of ties with one tie score for all battles, a parameter."""

    def initial_params(self) -> dict[str, Array]:
        return {"tie": jnp.zeros(())}


@register_likelihood
class RaoKupper(_LearnedTie):
    """See :func:`routerjax.losses.rao_kupper_log_prob`."""

    name = "rao_kupper"

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Under the threshold ``softplus(tie)``."""
        return losses.rao_kupper_log_prob(losses.margin(scores, sides), params["tie"])


@register_likelihood
class Davidson(_LearnedTie):
    """See :func:`routerjax.losses.davidson_log_prob`."""

    name = "davidson"

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Under the log-odds ``tie``."""
        return losses.davidson_log_prob(losses.margin(scores, sides), params["tie"])


class _TieOfEachPrompt(Likelihood):
    """A model of ties with a tie score of each prompt, the last output."""

    def output_names(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """The models, and ``tie``."""
        return (*models, "tie")

    def model_scores(self, scores: Float[Array, "batch outputs"]) -> Array:
        """All but the tie's."""
        return scores[:, :-1]


@register_likelihood
class ThreeOutcome(_TieOfEachPrompt):
    """Davidson's model with a tie score of each prompt."""

    name = "three_outcome"

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Under the log-odds that is the prompt's last score."""
        del params
        return losses.davidson_log_prob(losses.margin(scores, sides), scores[sides.query_index, -1])


@register_likelihood
class RaoKupperByPrompt(_TieOfEachPrompt):
    """Rao and Kupper's model with a threshold of each prompt, as P2L's ``rk`` routers have it.

    ``t = max(10 softplus((score - 22.5) / 10), 0.02)`` in nats, which is 1.0 at a score of 0 and moves by 0.1 a unit.

    Reference:
        Frick et al., "Prompt-to-Leaderboard", arXiv 2502.14855, and the loss ``rk`` of its code.
    """

    name = "rao_kupper_by_prompt"

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Under the threshold of the prompt's last score."""
        del params
        threshold = 10.0 * jax.nn.softplus((scores[sides.query_index, -1].astype(jnp.float32) - 22.5) / 10.0)
        threshold = jnp.maximum(threshold, 0.02)
        tie = threshold + jnp.log(-jnp.expm1(-threshold))  # whose softplus it is
        return losses.rao_kupper_log_prob(losses.margin(scores, sides), tie)


@register_likelihood
class GroundedRaoKupper(_TieOfEachPrompt):
    """See :func:`routerjax.losses.grounded_rao_kupper_log_prob`: a score of 0 is that of an answer just good enough."""

    name = "grounded_rao_kupper"
    num_outcomes = 4

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Under the tie score that is the prompt's last."""
        del params
        row = sides.query_index
        return losses.grounded_rao_kupper_log_prob(
            scores[row, sides.model_a], scores[row, sides.model_b], scores[row, -1]
        )


@register_likelihood
class ThreeLabels(Likelihood):
    """A softmax over the outcomes of one pair, (first model wins, tie, second model wins)."""

    name = "three_labels"
    is_of_one_pair = True

    def output_names(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """The three outcomes."""
        if len(models) != 2:
            raise InputError(f"the loss {self.name} is of battles between two models, got {len(models)}")
        return (f"{models[0]} wins", "tie", f"{models[1]} wins")

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """The logits' softmax; of a battle the other way round, read backwards."""
        del params
        log_prob = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)[sides.query_index]
        return jnp.where((sides.model_a < sides.model_b)[:, None], log_prob, log_prob[:, ::-1])


@register_likelihood
class FiveRatings(Likelihood):
    """A softmax over ratings from 1 to 5 of the second of two models' answers.

    A rating of 5 is a win of the second model, 4 a tie, and less a win of the first; with the readout ``win``,
    P(the first is better) = 1 - P(4) - P(5).

    Reference:
        The causal classifier of RouteLLM's code, for P; that 4 rather than 5 is the tie is ours.
    """

    name = "five_ratings"
    is_of_one_pair = True

    def output_names(self, models: tuple[str, ...]) -> tuple[str, ...]:
        """The five ratings."""
        if len(models) != 2:
            raise InputError(f"the loss {self.name} is of battles between two models, got {len(models)}")
        return tuple(f"{models[1]} rated {rating}" for rating in range(1, 6))

    def log_prob(self, params: PyTree, scores: Float[Array, "prompts outputs"], sides: Sides) -> Array:
        """Sums of the ratings' softmax; of a battle the other way round, read backwards."""
        del params
        rating = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)[sides.query_index]
        first_wins = jax.nn.logsumexp(rating[:, :3], axis=-1)
        log_prob = jnp.stack([first_wins, rating[:, 3], rating[:, 4]], axis=-1)
        return jnp.where((sides.model_a < sides.model_b)[:, None], log_prob, log_prob[:, ::-1])


def make_likelihood(name: str, **fields: object) -> Likelihood:
    """The likelihood of a name, with its fields.

    Raises:
        InputError: no such likelihood (suggests the nearest), or fields that it has not or of another type.

    Example:
        >>> make_likelihood("davidson", readout="win")
        Davidson(readout='win')
    """
    return from_json(fields, choose(name, LIKELIHOODS, "the loss"), name)


def read_likelihood(fields: Mapping[str, Any]) -> Likelihood:
    """The inverse of :meth:`Likelihood.to_dict`.

    Raises:
        InputError: as :func:`make_likelihood`, or no name.
    """
    others = {name: value for name, value in fields.items() if name != "name"}
    return make_likelihood(fields.get("name", ""), **others)
