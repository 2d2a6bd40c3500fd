"""Outputs of a router: jitted functions, compiled once for equal routers, and checks of what they give."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from routerjax.errors import InputError
from routerjax.features import Embeddings
from routerjax.likelihoods import Likelihood
from routerjax.scoring import apply_module, make_score_fn
from routerjax.typing import Array, Query, ScoreFn, Variables

# A sum of probabilities in float32 is above 1 by less than this.
ROUNDING = 1e-6


def checked_probability(prob: np.ndarray, what: str, prompts: Sequence[str] | Embeddings) -> np.ndarray:
    """Refuse what is no probability; rounding alone leaves [0, 1] by less than ``ROUNDING``, and is cut off."""
    require_values((prob >= -ROUNDING) & (prob <= 1 + ROUNDING), prob, f"{what} must be in [0, 1]", prompts)
    return np.clip(prob, 0, 1)


def require_values(is_good: np.ndarray, values: np.ndarray, what: str, prompts: Sequence[str] | Embeddings) -> None:
    """Raise InputError, with the row and its prompt, where a value is not good; ``what`` says what it must be."""
    wrong = np.argwhere(~is_good)
    if wrong.size:
        row = int(wrong[0, 0])
        text = "" if isinstance(prompts, Embeddings) else f" ({prompts[row][:40]!r})"
        raise InputError(
            f"row {row}{text}: the router's {what}, got {values[tuple(wrong[0])]}, and so in "
            f"{len(np.unique(wrong[:, 0]))} of {len(values)} rows; its weights, or the embeddings it is given, are not "
            "finite"
        )


@functools.lru_cache(maxsize=32)
def jit_scores(module: nn.Module) -> ScoreFn:
    """Jit ``(variables, query) -> scores``."""

    return jax.jit(functools.partial(apply_module, module))


@functools.lru_cache(maxsize=32)
def jit_outcome_prob(module: nn.Module, strong: int, weak: int, likelihood: Likelihood) -> ScoreFn:
    """Jit ``(variables, query) -> P(strong wins), P(tie), P(weak wins)``."""

    def outcome_prob(variables: Variables, query: Query) -> Array:
        return likelihood.outcome_prob(variables, apply_module(module, variables, query), strong, weak)

    return jax.jit(outcome_prob)


@functools.lru_cache(maxsize=32)
def jit_win_prob(module: nn.Module, strong: int, weak: int, likelihood: Likelihood) -> ScoreFn:
    """Jit ``(variables, query) -> win_prob``."""
    return jax.jit(make_score_fn(module, strong=strong, weak=weak, likelihood=likelihood))
