"""Types that every part shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any

Query: TypeAlias = Mapping[str, Array]
"""Input of a router, leading axis = batch: ``embedding [batch, embed]``, or ``token_ids`` and ``attention_mask``
``[batch, length]``, and optionally ``prompt_id [batch, 2]`` (uint32, see :func:`routerjax.prompts.prompt_ids`)."""

Variables: TypeAlias = Mapping[str, PyTree]
"""``{"params": trained, "likelihood": trained, see routerjax.likelihoods, "memory": stored but never optimised,
"calibration": see routerjax.calibration}``; each may be absent."""


class PreferenceBatch(NamedTuple):
    """Battles over unique queries; a whole data set and a mini-batch have the same form.

    Attributes:
        query: unique queries, each leaf ``[prompts, ...]``.
        query_index: int32 ``[battles]``, which query a battle was fought on.
        model_a: int32 ``[battles]``, column of the first model.
        model_b: int32 ``[battles]``, column of the second model.
        outcome: float32 ``[battles, 3 or 4]``, P(a wins), P(tie), P(b wins) and, where the data tells such ties from
            others, P(both answers are bad); rows sum to 1.
        weight: float32 ``[battles]``, non-negative; 0 marks padding.
    """

    query: Query
    query_index: Array
    model_a: Array
    model_b: Array
    outcome: Array
    weight: Array

    @property
    def label(self) -> Array:
        """P(a is better), ties of both kinds counting half: float32 ``[battles]``."""
        return self.outcome[:, 0] + 0.5 * self.outcome[:, 1::2].sum(axis=1)


class BatchShape(NamedTuple):
    """Batches of one shape in a pass over battles.

    Attributes:
        rows: queries of a batch, on all devices together, padding included.
        length: tokens of each, padding included; 1 of embeddings.
        batches: as many are of this shape.
    """

    rows: int
    length: int
    batches: int


class Sides(NamedTuple):
    """Models of battles, and the rows of the scores that they are fought on: int32 ``[battles]`` each."""

    query_index: Array
    model_a: Array
    model_b: Array


ScoreFn: TypeAlias = Callable[[Variables, Query], Array]
"""Pure ``(variables, query) -> win_prob [batch]``."""
