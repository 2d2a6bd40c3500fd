"""Batches of battles with the embeddings of their prompts, gathered on the host step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

from routerjax.data.batches import HostBatches
from routerjax.data.preferences import Preferences
from routerjax.errors import InputError
from routerjax.order import battle_order
from routerjax.partitioning import require_divisible
from routerjax.prompts import prompt_ids
from routerjax.tables import rows_not_finite
from routerjax.typing import BatchShape, PreferenceBatch


class EmbeddedBatches(HostBatches):
    """Battles on prompts with embeddings, in batches for training or validation.

    A batch holds the battles that a step on a :class:`PreferenceBatch` of all battles takes, in that order, and the
    embedding and the id of each one's prompt. A prompt with two battles in a batch has two rows there, so that all
    batches have one shape, and noise is drawn as it is there. The memory taken is that of a few batches, if
    ``embedding`` is mapped from a file, and of the order.

    Args:
        battles: any battles.
        embedding: finite in float32; may be mapped from a file, and is read as batches are made.
        rows: row in ``embedding`` of each of ``battles.unique_prompts``.
        batch_size: battles of a batch, over all devices; fewer if there are not so many.
        num_devices: that a batch is for: it has as many equal parts, each battle's embedding in the battle's part.

    Raises:
        InputError: a batch cannot be divided so, or an embedding is not finite in float32.
    """

    def __init__(
        self,
        battles: Preferences,
        embedding: Float32[np.ndarray, "rows embed"],
        rows: Int[np.ndarray, "prompts"],
        *,
        batch_size: int,
        num_devices: int = 1,
    ) -> None:
        require_divisible(batch_size, num_devices)
        self.battles, self.num_devices = battles, num_devices
        self.batch_size = min(batch_size, -(-len(battles) // num_devices) * num_devices)
        # Plain: each piece of numpy's own class for mapped files would be tracked as one.
        self._embedding, self._rows = np.asarray(embedding), np.asarray(rows)
        self._prompt_ids = prompt_ids(battles.unique_prompts)
        bad = np.flatnonzero(np.isin(self._rows, rows_not_finite(self._embedding)))
        if bad.size:
            raise InputError(f"the embedding of prompt {bad[0]} is not finite ({bad.size} such rows)")

    @property
    def shapes(self) -> list[BatchShape]:
        """The one shape of the batches of a pass."""
        return [BatchShape(self.batch_size, 1, -(-len(self.battles) // self.batch_size))]

    @property
    def num_tokens(self) -> int:
        """Tokens of a pass: embeddings have none."""
        return 0

    def battles_of(self, *, seed: int, epoch: int, start: int, stop: int) -> Int[np.ndarray, "battles"]:
        """Indices of the battles of some batches of a pass, from ``start`` to before ``stop``; see :meth:`shuffled`."""
        battles = self._order((seed, epoch))[start:stop].ravel()
        return battles[battles >= 0]

    def _order(self, seed: tuple[int, int] | None) -> Int32[np.ndarray, "batches battles"]:
        return battle_order(seed, num_battles=len(self.battles), batch_size=self.batch_size)

    def _gather(self, prompts: Int[np.ndarray, "battles"]) -> Float32[np.ndarray, "battles embed"]:
        return np.take(self._embedding, self._rows[prompts], axis=0).astype(np.float32, copy=False)

    def _batch(self, battles: Int[np.ndarray, "battles"], parts: range | None, /) -> PreferenceBatch:
        if parts is not None:
            size = self.batch_size // self.num_devices
            battles = battles[parts.start * size : parts.stop * size]
        is_padding = battles < 0
        battles = np.where(is_padding, 0, battles)
        prompts = self.battles.prompt_index[battles]
        # Any, since leaves are numpy's until a step takes them.
        query: Any = {"embedding": self._gather(prompts), "prompt_id": self._prompt_ids[prompts]}
        names = ("model_a", "model_b", "outcome", "weight")
        columns: dict[str, Any] = {name: getattr(self.battles, name)[battles] for name in names}
        columns["weight"][is_padding] = 0.0
        columns["query_index"] = np.arange(len(battles), dtype=np.int32)
        return PreferenceBatch(query=query, **columns)
