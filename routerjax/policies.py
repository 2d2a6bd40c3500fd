"""Policies: from a router's scores to the model that answers. One threshold for two models, score minus cost for many.

A policy is a record of plain values that a router keeps; the functions below it are what the two of this package do.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from pydantic import ConfigDict

from routerjax.errors import InputError, choose, model_column
from routerjax.metrics.columns import real_array
from routerjax.registry import Registry
from routerjax.validation import from_json

WinProb = Callable[[str, str], Array]
"""``(strong, weak) -> float32 [batch]``, P(the strong model is better): what a router knows of a pair of models."""


@dataclass(frozen=True)
class Policy(abc.ABC):
    """A choice among the models of a router.

    A subclass has a ``name``, says :meth:`choose`, and has fields that are plain values, which a router keeps.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: ClassVar[str]

    @abc.abstractmethod
    def require_models(self, models: tuple[str, ...]) -> None:
        """Refuse a router that the policy cannot choose in.

        Raises:
            InputError: the policy names a model that is none of the router's, or lacks one.
        """

    @abc.abstractmethod
    def choose(
        self, models: tuple[str, ...], scores: Float[Array, "batch models"], win_prob: WinProb
    ) -> Int[Array, "batch"]:
        """Choose a model for each prompt; pure, jits.

        Args:
            models: names of the router's models, in their order.
            scores: of the models, in nats; in an export the batch is symbolic, ``scores.shape[0]`` but not ``len``.
            win_prob: of any pair of the models, calibrated as the router is.

        Returns:
            int32 index of a model in ``models``.
        """

    @property
    def chooses(self) -> bool:
        """True if :meth:`choose` can be called: nothing is left to be found by calibration."""
        return True

    def require_choice(self) -> None:
        """Refuse a policy that cannot choose yet.

        Raises:
            InputError: says how a threshold is found.
        """
        if not self.chooses:
            how = "find one by calibrate (--strong-share P --output DIR), or give one"
            raise InputError(f"this router has no threshold yet: {how}")

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON holds it: infinity, which JSON has not, is text."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": self.name, **{name: "inf" if value == math.inf else value for name, value in fields.items()}}


POLICIES: Registry[type[Policy]] = Registry("routerjax.policies")
"""Policies by name; a package adds its own by an entry point ``routerjax.policies``."""

register_policy = POLICIES.register
"""Make a policy known by its name, see :meth:`routerjax.registry.Registry.register`."""


def make_policy(name: str, **fields: object) -> Policy:
    """Make the policy of a name.

    Raises:
        InputError: no such policy (suggests the nearest), or fields that it has not or of another type.

    Example:
        >>> make_policy("threshold", strong="big", weak="small", threshold="inf")
        Threshold(strong='big', weak='small', threshold=inf)
    """
    return from_json(fields, choose(name, POLICIES, "the policy"), name)


def read_policy(fields: Mapping[str, Any]) -> Policy:
    """Make a policy from what :meth:`Policy.to_dict` gave.

    Raises:
        InputError: as :func:`make_policy`, or no name.
    """
    others = {name: value for name, value in fields.items() if name != "name"}
    return make_policy(fields.get("name", ""), **others)


@register_policy
@dataclass(frozen=True)
class Threshold(Policy):
    """The strong model where its win probability over the weak one is at least a threshold.

    Attributes:
        strong, weak: names of two models.
        threshold: in [0, 1], higher is cheaper; ``inf`` sends nothing to the strong model; None before calibration.

    Raises:
        InputError: a threshold out of range, or one model for both.
    """

    name = "threshold"

    strong: str
    weak: str
    threshold: float | Literal["inf"] | None = None

    def __post_init__(self) -> None:
        if self.strong == self.weak:
            raise InputError(f"strong and weak must be different models, got {self.strong!r} for both")
        if self.threshold == "inf":
            object.__setattr__(self, "threshold", math.inf)
        if self.threshold is not None:
            _require_threshold(self.threshold)

    @property
    def chooses(self) -> bool:
        """True once there is a threshold."""
        return self.threshold is not None

    def require_models(self, models: tuple[str, ...]) -> None:
        """Both models must be among them."""
        for model in (self.strong, self.weak):
            model_column(model, models, "the router's")

    def choose(self, models: tuple[str, ...], scores: Float[Array, "batch models"], win_prob: WinProb) -> Array:
        """Compare in float32 with the same result as :func:`route`, which compares in float64.

        Raises:
            InputError: there is no threshold yet.
        """
        del scores
        self.require_choice()
        threshold = _at_least(float(cast(float, self.threshold)))
        is_strong = win_prob(self.strong, self.weak).astype(jnp.float32) >= threshold
        return jnp.where(is_strong, models.index(self.strong), models.index(self.weak)).astype(jnp.int32)

    def model_for(self, win_prob: float) -> str:
        """Model that answers a prompt of this win probability, a float32.

        Raises:
            InputError: as :meth:`choose`, or a win probability outside [0, 1].
        """
        self.require_choice()
        is_strong = route(np.asarray([win_prob], np.float32), float(cast(float, self.threshold)))[0]
        return self.strong if is_strong else self.weak


@register_policy
@dataclass(frozen=True)
class CostAware(Policy):
    """The model with the highest ``score - cost_weight * cost``; see :func:`route_by_cost`.

    Attributes:
        cost: of each model, dollars a call.
        cost_weight: nats that a dollar is worth, at least 0.

    Raises:
        InputError: a cost or a weight that is not finite, or a negative weight.
    """

    name = "cost_aware"

    cost: Mapping[str, float]
    cost_weight: float

    def __post_init__(self) -> None:
        for model, cost in self.cost.items():
            if not math.isfinite(cost):
                raise InputError(f"the cost of {model!r} must be finite, in dollars a call; got {cost!r}")
        if not 0.0 <= self.cost_weight < math.inf:
            raise InputError(f"cost_weight must be finite and at least 0, in nats a dollar; got {self.cost_weight!r}")

    def require_models(self, models: tuple[str, ...]) -> None:
        """Each model must have a cost, and no other."""
        for model in self.cost:
            model_column(model, models, "the router's")
        missing = [model for model in models if model not in self.cost]
        if missing:
            raise InputError(f"the policy has no cost of {missing[0]!r} ({len(missing)} of {len(models)} models)")

    def choose(self, models: tuple[str, ...], scores: Float[Array, "batch models"], win_prob: WinProb) -> Array:
        """See :func:`route_by_cost`."""
        del win_prob
        return route_by_cost(scores, jnp.asarray([self.cost[model] for model in models]), self.cost_weight)


class ShareThreshold(NamedTuple):
    """A threshold, and the share of the calibration prompts that it sends to the strong model."""

    threshold: float
    strong_share: float


def require_share(strong_share: float) -> None:
    """Raise InputError unless a share of strong calls is a number in [0, 1]."""
    if not (isinstance(strong_share, numbers.Real) and 0.0 <= strong_share <= 1.0):
        raise InputError(f"the wanted strong share must lie in [0, 1], such as 0.5; got {strong_share!r}")


def threshold_for_share(
    win_prob: Float[np.ndarray, "prompts"] | Float[Array, "prompts"], strong_share: float
) -> ShareThreshold:
    """Threshold that sends the largest attainable share of these prompts to the strong model, at most ``strong_share``.

    Prompts with equal win probabilities move together, so the attained share can be smaller than the wanted one. The
    threshold is one of the win probabilities (0 for what float32 holds only as a subnormal number), or, where the
    attained share is 0, the next number above the largest of them (``inf`` where that is 1: nothing in [0, 1] lies
    above). It is exact in the type of ``win_prob``, so that
    ``win_prob >= threshold`` gives the attained share in float32 and in float64.

    Args:
        win_prob: calibration prompts', in [0, 1].
        strong_share: wanted share in [0, 1] of strong calls.

    Returns:
        The threshold and the attained share.

    Raises:
        InputError: win probabilities that are empty, not finite or outside [0, 1]; a share outside [0, 1].

    Example:
        >>> threshold_for_share(np.array([0.1, 0.4, 0.4, 0.9]), 0.6)
        ShareThreshold(threshold=0.9, strong_share=0.25)

    Reference:
        RouteLLM (arXiv 2406.18665), section 3.1; the (1 - share) quantile, exact under ties.
    """
    require_share(strong_share)
    win_prob = _checked_win_prob(win_prob)
    # XLA flushes subnormal numbers to zero; a threshold there would mean another share in JAX than in numpy.
    smallest = float(np.finfo(np.float32).tiny)
    win_prob = np.where(win_prob < smallest, 0, win_prob).astype(win_prob.dtype)
    distinct, count = np.unique(win_prob, return_counts=True)
    share = np.cumsum(count[::-1]) / win_prob.size
    attainable = np.flatnonzero(share <= strong_share)
    if attainable.size:
        best = int(attainable[-1])
        return ShareThreshold(float(distinct[::-1][best]), float(share[best]))
    largest = distinct[-1]
    above = max(float(np.nextafter(largest, largest.dtype.type(2.0))), smallest)
    return ShareThreshold(above if above <= 1.0 else math.inf, 0.0)


def route(win_prob: Float[np.ndarray, "batch"] | Float[Array, "batch"], threshold: float) -> Bool[np.ndarray, "batch"]:
    """Decide for each prompt: ``win_prob >= threshold``.

    Args:
        win_prob: P(the strong model is better), in [0, 1].
        threshold: in [0, 1], higher is cheaper; or ``inf``, which sends nothing to the strong model.

    Returns:
        True for the strong model.

    Raises:
        InputError: win probabilities that are empty, not finite or outside [0, 1]; a threshold that is neither in
            [0, 1] nor ``inf``.

    Example:
        >>> route(np.array([0.2, 0.7]), 0.7).tolist()
        [False, True]

    Reference:
        RouteLLM (arXiv 2406.18665), section 3.1.
    """
    _require_threshold(threshold)
    # In float64, or numpy would round the threshold to float32 and could make it equal to a smaller win probability.
    return _checked_win_prob(win_prob).astype(np.float64) >= float(threshold)


def route_by_cost(
    scores: Float[Array, "batch models"],
    cost: Float[Array, "models"] | Float[Array, "batch models"],
    cost_weight: float | Float[Array, ""],
) -> Int[Array, "batch"]:
    """Choose among any number of models: ``argmax_m scores[m] - cost_weight * cost[m]``; pure, jits.

    The first of equal models wins.

    Args:
        scores: in nats, a higher one is better.
        cost: of each model, or of each model on each prompt, in dollars for example.
        cost_weight: nats a unit of cost is worth, at least 0; 0 always takes the highest score.

    Returns:
        int32 column of the chosen model.

    Raises:
        InputError: shapes that do not match.

    Example:
        >>> route_by_cost(jnp.array([[2.0, 1.0], [5.0, 1.0]]), jnp.array([10.0, 1.0]), 0.2).tolist()
        [1, 0]
    """
    scores, cost = jnp.asarray(scores), jnp.asarray(cost)
    if scores.ndim != 2 or scores.shape[1] == 0 or cost.shape not in (scores.shape, scores.shape[1:]):
        raise InputError(
            "scores must be [batch, models], of at least one model, and cost [models] or [batch, models]; "
            f"got scores {scores.shape} and cost {cost.shape}"
        )
    utility = scores - cost_weight * jnp.broadcast_to(cost, scores.shape)
    return jnp.argmax(utility, axis=-1).astype(jnp.int32)


def _require_threshold(threshold: object) -> None:
    is_number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not is_number or not (0.0 <= float(cast(float, threshold)) <= 1.0 or threshold == math.inf):
        raise InputError(f"the threshold must lie in [0, 1], or be inf for never; got {threshold!r}")


def _at_least(threshold: float) -> np.float32:
    """Return the smallest float32 that is not below a threshold, and that XLA does not flush to zero unless it is 0."""
    rounded = np.float32(threshold)
    up = rounded if float(rounded) >= threshold else np.nextafter(rounded, np.float32(math.inf))
    return max(up, np.finfo(np.float32).tiny) if threshold > 0 else up


def _checked_win_prob(win_prob: Float[np.ndarray, "batch"] | Float[jax.Array, "batch"]) -> np.ndarray:
    """Convert to float32, or to float64 where it is wider, which keeps every value, and check it."""
    checked = real_array(win_prob, "win_prob")
    checked = checked.astype(np.float32 if checked.dtype.itemsize <= 4 else np.float64)
    if checked.ndim != 1 or checked.size == 0:
        raise InputError(f"win_prob must be a non-empty vector, one number for each prompt; got shape {checked.shape}")
    bad = np.flatnonzero(~((checked >= 0.0) & (checked <= 1.0)))
    if bad.size:
        raise InputError(
            f"win_prob must be finite and lie in [0, 1]; row {bad[0]} is {checked[bad[0]]} ({bad.size} such rows)"
        )
    return checked
