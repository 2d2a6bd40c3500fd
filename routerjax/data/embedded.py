"""Batches of battles with the embeddings of their prompts, gathered on the host step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

from routerjax.data.preferences import Preferences
from routerjax.errors import InputError
from routerjax.order import epoch_order
from routerjax.prompts import prompt_ids
from routerjax.typing import BatchShape, PreferenceBatch

# Embeddings are checked so many rows at a time, and never all copied.
ROWS_A_CHECK = 2**16


class EmbeddedBatches:
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
        if batch_size % num_devices:
            raise InputError(f"batch size ({batch_size}) must be divisible by device count ({num_devices})")
        self.battles, self.num_devices = battles, num_devices
        self.batch_size = min(batch_size, -(-len(battles) // num_devices) * num_devices)
        # Plain: each piece of numpy's own class for mapped files would be tracked as one.
        self._embedding, self._rows = np.asarray(embedding), np.asarray(rows)
        self._prompt_ids = prompt_ids(battles.unique_prompts)
        for start in range(0, len(rows), ROWS_A_CHECK):
            is_finite = np.isfinite(self._gather(np.arange(start, min(start + ROWS_A_CHECK, len(rows))))).all(axis=1)
            if not is_finite.all():
                raise InputError(f"the embedding of prompt {start + int(is_finite.argmin())} is not finite")

    @property
    def num_battles(self) -> int:
        """Battles of a pass."""
        return len(self.battles)

    @property
    def total_weight(self) -> float:
        """Sum of their weights."""
        return float(self.battles.weight.sum(dtype=np.float64))

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        return -(-len(self.battles) // self.batch_size)

    @property
    def shapes(self) -> list[BatchShape]:
        """The shape of the batches of a pass."""
        return [BatchShape(self.batch_size, 1, self.num_batches)]

    @property
    def num_tokens(self) -> int:
        """None: embeddings have no tokens."""
        return 0

    def in_order(self) -> Iterator[PreferenceBatch]:
        """A pass over all battles, not shuffled."""
        for start in range(0, len(self.battles), self.batch_size):
            battles = np.arange(start, start + self.batch_size)
            yield self._batch(np.where(battles < len(self.battles), battles, -1), None)

    def shuffled(
        self, *, seed: int, epoch: int, start: int = 0, parts: range | None = None
    ) -> Iterator[PreferenceBatch]:
        """A pass over all battles in the order of :func:`routerjax.order.epoch_order`: numpy leaves.

        Args:
            seed: of the data order of the whole run.
            epoch: 0 is the first.
            start: batches to leave out at the beginning.
            parts: neighbouring parts of each batch, of its ``num_devices``, that alone are made; ``query_index`` counts
                the rows of these. None makes all.
        """
        yield from (self._batch(battles, parts) for battles in self._order(seed, epoch)[start:])

    def battles_of(self, *, seed: int, epoch: int, start: int, stop: int) -> Int[np.ndarray, "battles"]:
        """Indices of the battles of some batches of a pass, from ``start`` to before ``stop``; see :meth:`shuffled`."""
        battles = self._order(seed, epoch)[start:stop].ravel()
        return battles[battles >= 0]

    def _order(self, seed: int, epoch: int) -> Int32[np.ndarray, "batches battles"]:
        return epoch_order(seed=seed, epoch=epoch, num_battles=len(self.battles), batch_size=self.batch_size)

    def _gather(self, prompts: Int[np.ndarray, "battles"]) -> Float32[np.ndarray, "battles embed"]:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
            return np.take(self._embedding, self._rows[prompts], axis=0).astype(np.float32, copy=False)

    def _batch(self, battles: Int[np.ndarray, "battles"], parts: range | None) -> PreferenceBatch:
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
