"""Sources of battles: what the loop and the steps of training ask of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from routerjax.typing import PreferenceBatch


class Battles(Protocol):
    """Battles of a training or validation set, wherever they lie."""

    @property
    def num_battles(self) -> int:
        """Battles of a pass."""
        ...

    @property
    def total_weight(self) -> float:
        """Sum of their weights."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        ...

    def in_order(self) -> Iterable[PreferenceBatch]:
        """Yield all battles once, for validation."""
        ...


class Batches(Battles, Protocol):
    """Battles that come in shuffled batches, such as :class:`routerjax.data.TokenBatches`."""

    def shuffled(self, *, seed: int, epoch: int, start: int = 0) -> Iterable[PreferenceBatch]:
        """The batches of an epoch from the ``start``-th on, a pure function of seed and epoch; few shapes."""
        ...


@dataclass(frozen=True)
class Resident:
    """Battles on the device, as a batch."""

    batch: PreferenceBatch

    @property
    def num_batches(self) -> int:
        """One: all battles at once."""
        return 1

    @property
    def num_battles(self) -> int:
        """Battles of a pass."""
        return self.batch.query_index.shape[0]

    @property
    def total_weight(self) -> float:
        """Sum of their weights."""
        return float(np.asarray(self.batch.weight).sum(dtype=np.float64))

    def in_order(self) -> list[PreferenceBatch]:
        """Yield all battles once, for validation."""
        return [self.batch]
