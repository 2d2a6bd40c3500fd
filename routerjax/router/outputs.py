"""Outputs of a router for prompts: batches of queries, jitted functions, and checks of what these give."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Bool, Int, UInt32

from routerjax.errors import InputError, RowError
from routerjax.features import EmbeddingCache, Embeddings, Featurizer
from routerjax.likelihoods import Likelihood
from routerjax.prompts import distinct, prompt_ids, require_texts
from routerjax.scoring import apply_module
from routerjax.typing import Array, ScoreFn, Variables

Batches = Iterator[tuple[Int[np.ndarray, "rows"], dict[str, np.ndarray]]]
"""Rows of prompts and their padded queries, see :meth:`routerjax.features.Featurizer.batches`."""

ReadFn = Callable[[Variables, Array], Array]
"""Pure ``(variables, scores of the module) -> output`` of a batch."""

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
        raise RowError(
            row,
            f"{text}: the router's {what}, got {values[tuple(wrong[0])]}, and so in "
            f"{len(np.unique(wrong[:, 0]))} of {len(values)} rows; its weights, or the embeddings it is given, are not "
            "finite",
        )


@functools.lru_cache(maxsize=64)
def jitted_module(module: nn.Module) -> ScoreFn:
    """Jit ``(variables, query) -> scores``, once for equal routers, whatever is read from the scores."""
    return jax.jit(functools.partial(apply_module, module))


@functools.lru_cache(maxsize=256)
def jitted(read: Callable[..., Array], *static: Hashable) -> ReadFn:
    """Jit ``(variables, scores of the module) -> read(variables, scores, *static)``, once for equal arguments."""
    return jax.jit(lambda variables, scores: read(variables, scores, *static))


def module_scores(variables: Variables, scores: Array) -> Array:
    """Scores of the module as they are."""
    del variables
    return scores


def pair_outcome_prob(variables: Variables, scores: Array, strong: int, weak: int, likelihood: Likelihood) -> Array:
    """Probabilities of the outcomes of a pair, see :meth:`routerjax.likelihoods.Likelihood.outcome_prob`."""
    return likelihood.outcome_prob(variables, scores, strong, weak)


def batches_of(
    prompts: Sequence[str] | Embeddings,
    featurizer: Featurizer,
    *,
    has_prompt_id: bool,
    cache: EmbeddingCache | None,
) -> tuple[Int[np.ndarray, "prompts"], Batches]:
    """The row of each prompt among the different ones, and the padded queries of these.

    Args:
        prompts: texts, or their embeddings.
        featurizer: of texts.
        has_prompt_id: add the identity of each prompt, by which a memory leaves out its own battles.
        cache: where embeddings are kept between runs.

    Raises:
        InputError: prompts that are no texts, or embeddings where their identity is needed.
    """
    if isinstance(prompts, Embeddings):
        if has_prompt_id:
            raise InputError("exclude_own_battles needs prompts as texts: battles are remembered by them")
        return np.arange(len(prompts.embedding)), prompts.batches()
    require_texts(prompts)
    featurizer.require_prompts(prompts)
    is_first, row_of, _ = distinct(prompts)
    texts = list(itertools.compress(prompts, is_first.tobytes()))
    batches = _naming_rows(featurizer.batches(texts, cache=cache), is_first)
    if has_prompt_id:
        batches = _with_prompt_id(batches, prompt_ids(texts))
    return row_of, batches


def _naming_rows(batches: Batches, is_first: Bool[np.ndarray, "prompts"]) -> Batches:
    """Batches of the different prompts, whose errors name rows of all."""
    try:
        yield from batches
    except RowError as error:
        raise error.at(int(np.flatnonzero(is_first)[error.row])) from error


def _with_prompt_id(batches: Batches, ids: UInt32[np.ndarray, "prompts 2"]) -> Batches:
    for rows, query in batches:
        size = len(next(iter(query.values())))
        yield rows, {**query, "prompt_id": np.pad(ids[rows], ((0, size - len(rows)), (0, 0)))}


def run(
    module: nn.Module,
    read: ReadFn,
    variables: Variables,
    row_of: Int[np.ndarray, "prompts"],
    batches: Batches,
    *,
    progress: bool,
) -> np.ndarray:
    """Read from the scores of each different prompt, computed once, in batches of a few static shapes."""
    count, outputs = int(row_of.max()) + 1, np.zeros(0, np.float32)
    # A calibration comes and goes with the pair. It is none of the module's, which is compiled once for all pairs.
    of_module = {name: leaf for name, leaf in variables.items() if name != "calibration"}
    with tqdm.tqdm(total=count, unit="prompt", disable=not progress, delay=2) as bar:
        for rows, query in batches:
            scores = jitted_module(module)(of_module, {name: jnp.asarray(leaf) for name, leaf in query.items()})
            computed = np.asarray(read(variables, scores), np.float32)[: len(rows)]
            if not outputs.size:
                outputs = np.zeros((count, *computed.shape[1:]), np.float32)
            outputs[rows] = computed
            bar.update(len(rows))
    return outputs[row_of]
