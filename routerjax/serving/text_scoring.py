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

# Rows of a batch that is no single text. From this many texts on they are computed together, padded to that: fewer take
# less time one after the other. A batch has no more tokens than these.
ROWS, FEWEST_TOGETHER = 4, 3
MOST_TOKENS = 4096


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

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compile for all shapes, and compute once in each; yield its rows and its length, which is 0 of no tokens."""
        for rows in (1, ROWS):
            if self._text is None:
                self([f"warm {row}" for row in range(rows)])
                yield rows, 0
                continue
            for length in self._text.tokenizer.lengths:
                if rows == 1 or rows * length <= MOST_TOKENS:
                    self._compute([[1] * length] * rows, length)
                    yield rows, length

    def __call__(self, texts: Sequence[str]) -> list[TextOutputs]:
        """Compute the outputs for texts, at most a micro-batch of them.

        Raises:
            InputError: a text that cannot be read.
            OSError: an endpoint of embeddings that does not answer.
        """
        self.router.featurizer.require_prompts(texts)
        if self._text is None:
            query = self.router.featurizer.query(texts)
            computed = [self._of_query(query, part) for part in _parts(len(texts), most=ROWS)]
            return [outputs for part in computed for outputs in part]
        results: dict[int, TextOutputs] = {}
        tokenizer = self._text.tokenizer
        token_ids = tokenizer.read(texts).token_ids
        bucket = tokenizer.bucket_of(token_ids)
        for number in np.unique(bucket):
            length, rows = tokenizer.lengths[number], np.flatnonzero(bucket == number)
            for part in _parts(len(rows), most=ROWS if ROWS * length <= MOST_TOKENS else 1):
                computed = self._compute([token_ids[row] for row in rows[part]], length)
                results.update(zip(rows[part].tolist(), computed, strict=True))
        return [results[row] for row in range(len(texts))]

    def _of_query(self, query: dict[str, np.ndarray], part: slice) -> list[TextOutputs]:
        """Outputs for a part of a query, which is padded by zeros."""
        leaves = {name: leaf[part] for name, leaf in query.items()}
        count = part.stop - part.start
        missing = 0 if count == 1 else ROWS - count
        padded = {name: np.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1))) for name, leaf in leaves.items()}
        return self._read(self._outputs(padded), count)

    def _compute(self, token_ids: Sequence[Sequence[int]], length: int) -> list[TextOutputs]:
        tokenizer = cast(TextFunction, self._text).tokenizer
        tokens = tokenizer.pad(token_ids, length, batch=1 if len(token_ids) == 1 else ROWS)
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


def _parts(rows: int, *, most: int) -> Iterator[slice]:
    """Split rows into parts that are computed at once: single rows, or up to ``most``."""
    start = 0
    while start < rows:
        count = min(most, rows - start) if rows - start >= FEWEST_TOGETHER else 1
        yield slice(start, start + count)
        start += count
