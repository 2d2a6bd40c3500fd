"""Order in which battles are trained on: a pure function of seed and epoch, wherever they lie."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32


def epoch_order(*, seed: int, epoch: int, num_battles: int, batch_size: int) -> Int32[np.ndarray, "steps batch"]:
    """Every battle once, in batches that are a pure function of seed and epoch; the last is filled up with -1.

    Args:
        seed: of the data order of the whole run.
        epoch: 0 is the first.
        num_battles: battles in the data set.
        batch_size: battles a step.

    Example:
        >>> epoch_order(seed=0, epoch=0, num_battles=3, batch_size=2).shape
        (2, 2)
    """
    return battle_order((seed, epoch), num_battles=num_battles, batch_size=batch_size)


def battle_order(
    seed: tuple[int, int] | None, *, num_battles: int, batch_size: int
) -> Int32[np.ndarray, "steps batch"]:
    """Every battle once, in the order that a seed decides, or as they are; see :func:`epoch_order`."""
    num_steps = -(-num_battles // batch_size)
    order = np.full(num_steps * batch_size, -1, np.int32)
    order[:num_battles] = (
        np.arange(num_battles) if seed is None else np.random.default_rng(seed).permutation(num_battles)
    )
    return order.reshape(num_steps, batch_size)
