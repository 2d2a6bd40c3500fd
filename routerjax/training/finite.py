"""Steps whose loss or gradient is not finite: they stop the run, or are skipped, and their battles are named."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from routerjax.errors import InputError
from routerjax.training.sources import Source

logger = logging.getLogger(__name__)

# More rows than these are counted, not listed.
MOST_LISTED = 5


def check_steps(metrics: Mapping[str, np.ndarray], source: Source, *, epoch: int, start: int, warns: bool) -> None:
    """Stop the run at a step that is not finite; warn of one that was skipped.

    Args:
        metrics: of finished steps, see :func:`routerjax.training.step.make_update`.
        source: of the battles.
        epoch: counted from 0.
        start: the first of the steps, in its epoch.
        warns: a step was skipped in this epoch for the first time, if one was.

    Raises:
        InputError: names the steps, and the battles of the first of them.
    """
    loss_sum, norm = metrics["loss_sum"], metrics["gradient_norm"]
    bad = np.flatnonzero(~np.isfinite(loss_sum) | ~np.isfinite(norm))
    if bad.size:
        what = "gradient" if np.isfinite(loss_sum[bad[0]]) else "loss"
        where = _where(bad + start, source, epoch)
        raise not_finite(f"the {what} is not finite {where}", "training.non_finite=skip goes on without such steps")
    skipped = np.flatnonzero(metrics.get("skipped", np.zeros(0)))
    if skipped.size and warns:
        where = _where(skipped + start, source, epoch)
        logger.warning("the loss or the gradient is not finite %s; such steps are skipped", where)


def _where(steps: Int[np.ndarray, "steps"], source: Source, epoch: int) -> str:
    """The first and last of these steps of an epoch, and the battles of the first one, as text."""
    rows, first = np.sort(source.battles_of(epoch, int(steps[0]))), epoch * source.steps_per_epoch
    others = f" (of {len(steps)} such steps until step {first + steps[-1]})" if len(steps) > 1 else ""
    listed = ", ".join(map(str, rows[:MOST_LISTED])) + (", ..." if len(rows) > MOST_LISTED else "")
    return (
        f"in epoch {epoch + 1}, first at step {first + steps[0]}{others}, which learns from {len(rows)} battles: rows "
        f"{listed} of those that are trained on, counted from 0"
    )


def not_finite(what: str, resuming: str = "") -> InputError:
    """Error of a run that diverged; ``what`` says where, ``resuming`` how it can be resumed, if it can."""
    resumed = f", from which {resuming} (--resume)" if resuming else ""
    mend = "lower the learning rate or set optimizer.gradient_clip; the last checkpoint is untouched"
    return InputError(f"{what}: {mend}{resumed}")
