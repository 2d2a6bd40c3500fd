"""Outputs of a router for texts, in few static shapes that are all compiled before the first request."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import jax
import numpy as np

from routerjax.features import TextFunction
from routerjax.router import Router
from routerjax.typing import Array, Query, Variables

# Rows of a batch: others are padded to the next of these. A batch has no more tokens than these unless it is one text.
ROWS = (1, 8)
MOST_TOKENS = 4096
SHORTEST = 16


class TextOutputs(NamedTuple):
    """Outputs of a router for one text.

    Attributes:
        column: of the model that its policy chooses.
        win_prob: of the policy's pair; None of a policy without one.
        scores: of all models, in nats; None of a policy with a pair.
    """

    column: int
    win_prob: float | None
    scores: tuple[float, ...] | None


class TextScorer:
    """Pure function from texts to outputs of a router, compiled for few shapes.

    Args:
        router: whose outputs they are; its policy can choose.

    Raises:
        InputError: the router reads no text, or what reads it is not found.
    """

    def __init__(self, router: Router) -> None:
        router.featurizer.require_text()
        self.router = router
        text = router.featurizer.text_function()
        self._text = text
        outputs = router.output_fn()

        def of_tokens(variables: tuple[Variables, Variables], tokens: Query) -> dict[str, Array]:
            apply = cast(TextFunction, text).apply
            # Accelerators multiply in lower precision unless told otherwise; training embedded in float32.
            with jax.default_matmul_precision("highest"):
                query = apply(variables[1], tokens)
            return outputs(variables[0], query)

        if text is None:
            self._outputs = functools.partial(jax.jit(outputs), router.variables)
        else:
            self._outputs = functools.partial(jax.jit(of_tokens), (router.variables, text.variables))

    def warm_up(self) -> None:
        """Compile for all shapes, and compute once in each."""
        if self._text is None:
            self(["warm"])
            for rows in ROWS[1:]:
                self([f"warm {row}" for row in range(rows)])
            return
        for length in self.lengths:
            for rows in ROWS:
                if rows <= self._most_rows(length):
                    self._compute([[1] * length] * rows, length)

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Lengths that tokens are padded to: powers of two, and the longest that is read."""
        longest = cast(TextFunction, self._text).tokenizer.max_length
        powers = (2**power for power in range(SHORTEST.bit_length() - 1, 31))
        return (*(length for length in _below(powers, longest)), longest)

    def __call__(self, texts: Sequence[str]) -> list[TextOutputs]:
        """Compute the outputs for texts, at most a micro-batch of them.

        Raises:
            InputError: a text that cannot be read.
            OSError: an endpoint of embeddings that does not answer.
        """
        self.router.featurizer.require_prompts(texts)
        if self._text is None:
            query = self.router.featurizer.query(texts)
            return [row for part in _parts(query, len(texts)) for row in self._read(self._outputs(part[1]), part[0])]
        results: list[TextOutputs | None] = [None] * len(texts)
        token_ids = self._text.tokenizer.read(texts).token_ids
        bucket = np.searchsorted(self.lengths, [len(ids) for ids in token_ids])
        for number in np.unique(bucket):
            length, rows = self.lengths[number], np.flatnonzero(bucket == number)
            most = self._most_rows(length)
            for start in range(0, len(rows), most):
                part = rows[start : start + most]
                computed = self._compute([token_ids[row] for row in part], length)
                for row, outputs in zip(part, computed, strict=True):
                    results[row] = outputs
        return cast("list[TextOutputs]", results)

    def _most_rows(self, length: int) -> int:
        return max(rows for rows in ROWS if rows == 1 or rows * length <= MOST_TOKENS)

    def _compute(self, token_ids: Sequence[Sequence[int]], length: int) -> list[TextOutputs]:
        tokenizer = cast(TextFunction, self._text).tokenizer
        tokens = tokenizer.pad(token_ids, length, batch=_padded(len(token_ids)))
        return self._read(self._outputs(tokens), len(token_ids))

    def _read(self, outputs: dict[str, Array], rows: int) -> list[TextOutputs]:
        names = ("model", "win_prob") if self.router.has_pair else ("model", "scores")
        on_host = {name: np.asarray(outputs[name])[:rows].tolist() for name in names}
        nothing = [None] * rows
        columns, win_prob, scores = (on_host.get(name, nothing) for name in ("model", "win_prob", "scores"))
        return [
            TextOutputs(column, probability, None if row is None else tuple(row))
            for column, probability, row in zip(columns, win_prob, scores, strict=True)
        ]


def _below(values: Iterator[int], limit: int) -> Iterator[int]:
    for value in values:
        if value >= limit:
            return
        yield value


def _padded(rows: int) -> int:
    return next(size for size in ROWS if size >= rows)


def _parts(query: dict[str, np.ndarray], rows: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Parts of a query, padded by zeros to one of the numbers of rows, and how many rows of each are texts."""
    for start in range(0, rows, ROWS[-1]):
        part = {name: leaf[start : start + ROWS[-1]] for name, leaf in query.items()}
        count = min(ROWS[-1], rows - start)
        missing = _padded(count) - count
        yield count, {name: np.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1))) for name, leaf in part.items()}
