"""Batches of a few static shapes: a router's jitted function applied to any number of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float32

from routerjax.features import TextTokenizer, padded_rows, read_prompts
from routerjax.prompts import require_texts
from routerjax.typing import Array, ScoreFn, Variables

# Embeddings scored at a time, a power of two: bounded space for families that compare with a memory.
LARGEST_BATCH = 1024


def apply_to_query(
    compiled: ScoreFn, variables: Variables, query: Mapping[str, np.ndarray], *, progress: bool
) -> Float32[np.ndarray, "prompts *outputs"]:
    """Apply a function to embeddings, in batches of a power of two of rows.

    Args:
        compiled: jitted, ``(variables, query) -> [batch, ...]``.
        variables: its first argument.
        query: ``embedding`` ``[prompts, embed]``, and what else has a row a prompt.
        progress: show a progress bar, if it takes more than two seconds.
    """
    count, parts = len(query["embedding"]), []
    with tqdm.tqdm(total=count, unit="prompt", disable=not progress, delay=2) as bar:
        for start in range(0, max(count, 1), LARGEST_BATCH):
            rows = {name: leaf[start : start + LARGEST_BATCH] for name, leaf in query.items()}
            size = len(rows["embedding"])
            more = padded_rows(size) - size
            full = {
                name: np.concatenate([leaf, np.zeros((more, *leaf.shape[1:]), leaf.dtype)])
                for name, leaf in rows.items()
            }
            parts.append(np.asarray(compiled(variables, _on_device(full)), np.float32)[:size])
            bar.update(size)
    return np.concatenate(parts)


def apply_to_texts(
    compiled: ScoreFn, variables: Variables, prompts: Sequence[str], *, tokenizer: TextTokenizer, progress: bool
) -> Float32[np.ndarray, "prompts *outputs"]:
    """Apply a function to the tokens of each different prompt once, in the shapes of :meth:`TextTokenizer.batches`.

    Args:
        compiled: jitted, ``(variables, query) -> [batch, ...]``.
        variables: its first argument.
        prompts: texts.
        tokenizer: the router's own.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: a prompt that is not text.
    """
    require_texts(prompts)
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    token_ids = read_prompts(tokenizer, list(row_of), progress=progress)
    outputs: list[np.ndarray] = [np.zeros(0, np.float32)] * len(row_of)
    with tqdm.tqdm(total=len(row_of), unit="prompt", disable=not progress, delay=2) as bar:
        for rows, query in tokenizer.batches(token_ids):
            computed = np.asarray(compiled(variables, _on_device(query)), np.float32)
            for place, row in enumerate(rows):
                outputs[row] = computed[place]
            bar.update(len(rows))
    if not prompts:
        return np.asarray(compiled(variables, _on_device(tokenizer.pad([], 2, batch=1))), np.float32)[:0]
    return np.stack([outputs[row_of[prompt]] for prompt in prompts])


def _on_device(query: Mapping[str, np.ndarray]) -> dict[str, Array]:
    return {name: jnp.asarray(leaf) for name, leaf in query.items()}
