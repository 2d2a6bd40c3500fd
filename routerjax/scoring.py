"""Scoring function that evaluation, serving and export see: ``(variables, query) -> win_prob``."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.calibration import apply_calibration
from routerjax.errors import InputError
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.typing import Query, ScoreFn, Variables


def make_score_fn(module: nn.Module, *, strong: int, weak: int, likelihood: Likelihood = BRADLEY_TERRY) -> ScoreFn:
    """Make the pure scoring function of a router for one pair of models.

    ``win_prob = calibrate(likelihood.win_prob(variables, module.apply(variables, query), strong, weak))``: it jits,
    differentiates, and exports. Calibration is a collection of the variables; where there is none, nothing is
    calibrated.

    Args:
        module: a router family, ``(query, *, deterministic) -> scores [batch, models]``.
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
        scores = jnp.asarray(module.apply(variables, query, deterministic=True))
        win_prob = likelihood.win_prob(variables, scores, strong, weak).astype(jnp.float32)
        return apply_calibration(variables["calibration"], win_prob) if "calibration" in variables else win_prob

    return score
