"""Trace of some of a run's steps by JAX's profiler, for TensorBoard and Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path

import jax

from routerjax.errors import InputError

logger = logging.getLogger(__name__)

STEP_NAME = "train"
"""Name of the annotation of each call of the compiled step, by which TensorBoard finds steps in a trace."""


def require_within(steps: range | None, total: int) -> None:
    """Raise InputError unless a run of ``total`` steps has those that are to be traced."""
    if steps is not None and steps.stop > total:
        raise InputError(f"training.profile={steps.start}:{steps.stop} is beyond the run, which has {total} steps")


class StepProfile:
    """Traces the steps of a range, while the context is entered.

    Args:
        steps: of the run, counted from 0; None traces none.
        directory: where the trace is written; None for nowhere, which is refused where there are ``steps``.
        finished: steps of the run that are behind it.
        total: steps of the run.

    Raises:
        InputError: the steps are not those of a run that is here.
    """

    def __init__(self, steps: range | None, directory: Path | None, *, finished: int, total: int) -> None:
        self._steps, self._directory = steps or range(0), directory
        self._is_tracing, self._is_done = False, not self._steps
        if steps is None:
            return
        setting = f"training.profile={steps.start}:{steps.stop}"
        if directory is None:
            raise InputError(f"{setting} needs a folder to write into: give fit a directory")
        require_within(steps, total)
        if steps.start < finished:
            raise InputError(f"{setting} is behind the run, which goes on at step {finished}: take later steps")

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_tracing:
            self._stop()
        elif not self._is_done and jax.process_index() == 0:
            logger.warning("nothing is traced: the run ended before step %d", self._steps.start)

    def reach(self, finished: int, *, goes_on: bool) -> bool:
        """Begin or end the trace where it is time; return True if so.

        Args:
            finished: steps of the run that are behind it, on the devices too.
            goes_on: a step of the same epoch comes next.
        """
        # Processes of one host would write files of one name.
        if self._is_done or jax.process_index() != 0:
            return False
        if self._is_tracing and finished >= self._steps.stop:
            self._stop()
            return True
        if goes_on and finished == self._steps.start:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._is_tracing = True
            return True
        return False

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_tracing, self._is_done = False, True
        logger.info(
            "steps %d to %d are traced: tensorboard --logdir %s, or open its perfetto_trace.json.gz in ui.perfetto.dev",
            *(self._steps.start, self._steps.stop - 1, self._directory),
        )
