"""A tie score for losses that learn one number for all battles."""

from __future__ import annotations

from typing import Protocol, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from routerjax.typing import Query


class _Scorer(Protocol):
    """Module with a number of models, which nn.Module does not declare."""

    num_models: int


class WithTie(nn.Module):
    """A router family with one learned tie score, the same for every query, as a last column of its scores.

    Attributes:
        scorer: the family's module.
    """

    scorer: nn.Module

    @property
    def num_models(self) -> int:
        """Columns that are models."""
        return cast(_Scorer, self.scorer).num_models

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch columns"]:
        """Score the query, and append the tie score: ``[batch, models + 1]``."""
        scores = cast(Array, self.scorer(query, deterministic=deterministic))
        tie = cast(Array, self.param("tie", nn.initializers.zeros_init(), (1,)))
        return jnp.concatenate([scores, jnp.broadcast_to(tie[None, :], (scores.shape[0], 1))], axis=1)
