"""Batches of battles that the host makes, in an order that a seed decides."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from routerjax.data.preferences import Preferences
from routerjax.typing import BatchShape, PreferenceBatch


class HostBatches(abc.ABC):
    """Battles in batches for training or validation, made one after another.

    Attributes:
        battles: all of them.
        num_devices: that a batch is for: it has as many equal parts, each battle's query in the battle's part.
    """

    battles: Preferences
    num_devices: int

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
        """Batches of a pass, in whatever order."""
        return sum(shape.batches for shape in self.shapes)

    @property
    @abc.abstractmethod
    def shapes(self) -> list[BatchShape]:
        """Shapes of the batches of a pass."""

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Tokens of the queries of a pass, without padding; 0 of embeddings."""

    @abc.abstractmethod
    def _order(
        self, seed: tuple[int, int] | None, /
    ) -> Sequence[Int[np.ndarray, "places"]] | Int[np.ndarray, "batches places"]:
        """Contents of each batch of a pass, shuffled by a seed; by None, not shuffled."""

    @abc.abstractmethod
    def _batch(self, places: Int[np.ndarray, "places"], parts: range | None, /) -> PreferenceBatch:
        """Make a batch, or neighbouring parts of it, from the contents that :meth:`_order` gives."""

    def in_order(self) -> Iterator[PreferenceBatch]:
        """A pass over all battles, not shuffled."""
        yield from (self._batch(places, None) for places in self._order(None))

    def shuffled(
        self, *, seed: int, epoch: int, start: int = 0, parts: range | None = None
    ) -> Iterator[PreferenceBatch]:
        """A pass over all battles: numpy leaves, the same ones for the same seed and epoch.

        Args:
            seed: of the data order of the whole run.
            epoch: 0 is the first.
            start: batches to leave out at the beginning.
            parts: neighbouring parts of each batch, of its ``num_devices``, that alone are made; ``query_index`` counts
                the rows of these. None makes all.
        """
        yield from (self._batch(places, parts) for places in self._order((seed, epoch))[start:])
