"""Batches of battles with embeddings, as a training step takes them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from routerjax.data.embedded import EmbeddedBatches
from routerjax.data.preferences import Preferences
from routerjax.errors import InputError
from routerjax.prompts import prompt_ids
from routerjax.tables import rows_not_finite
from routerjax.typing import PreferenceBatch


class EmbeddedPrompts:
    """Prompts with their embeddings, looked up by text.

    Args:
        prompts: different texts.
        embedding: one row for each of them.

    Raises:
        InputError: another number of rows.
    """

    def __init__(self, prompts: Sequence[str], embedding: Float[np.ndarray, "prompts embed"]) -> None:
        self._row_of = {prompt: row for row, prompt in enumerate(prompts)}
        self._embedding = embedding
        if len(embedding) != len(prompts):
            raise InputError(f"expected an embedding for each of {len(prompts)} prompts, got {len(embedding)}")

    def rows(self, prompts: Sequence[str]) -> Float[np.ndarray, "prompts embed"]:
        """Embeddings of some of the prompts, in their order.

        Raises:
            KeyError: a prompt that is none of them.
        """
        return self._embedding[self._rows(prompts)]

    def _rows(self, prompts: Sequence[str]) -> Int[np.ndarray, "prompts"]:
        return np.fromiter((self._row_of[prompt] for prompt in prompts), np.int64, len(prompts))

    def batches(self, battles: Preferences, *, batch_size: int, num_devices: int = 1) -> EmbeddedBatches:
        """Battles with the embeddings of their prompts, from the host batch by batch; see :class:`EmbeddedBatches`."""
        rows = self._rows(battles.unique_prompts)
        return EmbeddedBatches(battles, self._embedding, rows, batch_size=batch_size, num_devices=num_devices)

    def batch(self, battles: Preferences) -> PreferenceBatch:
        """Battles on the device with the embeddings of their prompts; see :func:`to_batch`."""
        return to_batch(battles, self.rows(battles.unique_prompts))


def to_batch(battles: Preferences, embedding: Float[np.ndarray, "prompts embed"]) -> PreferenceBatch:
    """Battles on the device, each unique prompt's query once.

    Args:
        battles: any battles.
        embedding: one row for each of ``battles.unique_prompts``, in that order.

    Returns:
        A batch whose query has ``embedding`` and ``prompt_id``.

    Raises:
        InputError: another number of rows, or a row that is not finite in float32.
    """
    expected = len(battles.unique_prompts)
    if embedding.ndim != 2 or len(embedding) != expected:
        raise InputError(
            f"embeddings must have one row for each of the {expected} different prompts, got shape {embedding.shape}"
        )
    bad = rows_not_finite(embedding)
    if bad.size:
        raise InputError(f"the embedding of prompt {bad[0]} is not finite ({bad.size} such rows)")
    embedding = embedding.astype(np.float32, copy=False)
    return PreferenceBatch(
        query={
            "embedding": jnp.asarray(embedding),
            "prompt_id": jnp.asarray(prompt_ids(battles.unique_prompts)),
        },
        query_index=jnp.asarray(battles.prompt_index),
        model_a=jnp.asarray(battles.model_a),
        model_b=jnp.asarray(battles.model_b),
        outcome=jnp.asarray(battles.outcome),
        weight=jnp.asarray(battles.weight),
    )
