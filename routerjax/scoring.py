"""Scoring function that evaluation, serving and export see: ``(variables, query) -> win_prob``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.calibration import apply_calibration
from routerjax.errors import InputError
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.typing import Query, ScoreFn, Variables


def apply_module(
    module: nn.Module,
    variables: Variables,
    query: Query,
    *,
    deterministic: bool = True,
    rngs: Mapping[str, Array] | None = None,
) -> Float[Array, "batch outputs"]:
    """Scores of a query by any linen module, which need not know ``deterministic``.

    Args:
        module: its ``__call__`` takes a query, and perhaps ``deterministic``.
        variables: of the module, in whatever collections; none of them is changed.
        query: see :data:`routerjax.typing.Query`.
        deterministic: False adds the noise of training, in a module that takes it.
        rngs: a key for each stream of random numbers.

    Raises:
        InputError: the module needs what it is not given: a variable, a stream, a collection that it may change.
    """
    with needs_named(module, variables, rngs or {}):
        return cast(Array, module.apply(variables, query, rngs=dict(rngs or {}), **mode(module, deterministic)))


def mode(module: nn.Module, deterministic: bool) -> dict[str, Any]:
    """Keywords of a call of the module: ``deterministic``, if it takes that."""
    is_taken = "deterministic" in inspect.signature(type(module).__call__).parameters
    return {"deterministic": deterministic} if is_taken else {}


@contextlib.contextmanager
def needs_named(module: nn.Module, variables: Variables, rngs: Mapping[str, Array]) -> Iterator[None]:
    """Raise InputError where the body runs a module that needs what it is not given; names what it is given."""
    try:
        yield
    except flax.errors.FlaxError as error:
        given, streams = (", ".join(sorted(names)) or "none" for names in (variables, rngs))
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{type(module).__name__} needs what it is not given: {reason}; it is run with the collections {given}, "
            f"which it must not change, and the streams of random numbers {streams}"
        ) from error


def make_score_fn(module: nn.Module, *, strong: int, weak: int, likelihood: Likelihood = BRADLEY_TERRY) -> ScoreFn:
    """Make the pure scoring function of a router for one pair of models.

    ``win_prob = calibrate(likelihood.win_prob(variables, scores, strong, weak))``: it jits, differentiates, and
    exports. Calibration is a collection of the variables; where there is none, nothing is calibrated.

    Args:
        module: from a query to scores, see :func:`apply_module`.
        strong: column of the strong model.
        weak: column of the weak model.
        likelihood: what the scores were trained under.

    Returns:
        ``(variables, query) -> win_prob``, float32 ``[batch]``, P(the strong model is better).

    Raises:
        InputError: the columns are equal, negative, or not below the module's ``num_models``, where it has that.

    Example:
        >>> import jax
        >>> from routerjax.models import MatrixFactorization
        >>> module, query = MatrixFactorization(num_models=2), {"embedding": jnp.zeros((3, 8))}
        >>> score = make_score_fn(module, strong=0, weak=1)
        >>> score(module.init(jax.random.key(0), query), query).shape
        (3,)
    """
    num_models = getattr(module, "num_models", None)
    for role, column in (("strong", strong), ("weak", weak)):
        if column < 0 or (num_models is not None and column >= num_models):
            known = "0 or above" if num_models is None else f"in 0..{num_models - 1}, the router's {num_models} models"
            raise InputError(f"the {role} model's column must be {known}; got {column}")
    if strong == weak:
        raise InputError(f"the strong and the weak model must differ; both are column {strong}")

    def score(variables: Variables, query: Query) -> Float[Array, "batch"]:
        return pair_win_prob(variables, apply_module(module, variables, query), strong, weak, likelihood)

    return score


def pair_win_prob(
    variables: Variables, scores: Float[Array, "batch outputs"], strong: int, weak: int, likelihood: Likelihood
) -> Float[Array, "batch"]:
    """Calibrated win probability of a pair from what the module computed; see :func:`make_score_fn`."""
    win_prob = likelihood.win_prob(variables, scores, strong, weak).astype(jnp.float32)
    return apply_calibration(variables["calibration"], win_prob) if "calibration" in variables else win_prob
