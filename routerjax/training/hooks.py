"""Hooks of :func:`routerjax.training.fit` that send a run's rows to Weights & Biases or MLflow."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerjax.errors import InputError, choose, require_extra

logger = logging.getLogger(__name__)

Hook = Callable[[Mapping[str, float]], None]
"""Is called with the row of each finished epoch, see :attr:`routerjax.training.FitResult.history`."""

# The tag by which a resumed run is found among MLflow's.
MLFLOW_TAG = "routerjax.run_id"


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker knows it.

    Attributes:
        name: that is shown.
        run_id: the same when the run is resumed, whose rows then go on where they were.
        config: plain values that determine the run.
        directory: for the tracker's own files.
    """

    name: str
    run_id: str
    config: Mapping[str, Any]
    directory: Path


@contextlib.contextmanager
def wandb_hook(run: TrackedRun) -> Iterator[Hook]:
    """Send rows to Weights & Biases.

    It is set up as usual: by ``wandb login``, or ``WANDB_MODE=offline``, and ``WANDB_PROJECT``, which is ``routerjax``
    by default.

    Raises:
        InputError: wandb is missing, or refuses to start.
    """
    require_tracker("wandb")
    import wandb  # pyright: ignore[reportMissingImports] (an extra)

    run.directory.mkdir(parents=True, exist_ok=True)
    with _starting("Weights & Biases"):
        tracked = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "routerjax"),
            name=run.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.directory),
            config=dict(run.config),
        )
        tracked.define_metric("*", step_metric="epoch")
    with contextlib.ExitStack() as stack:
        stack.callback(tracked.finish, exit_code=1)
        yield _never_failing("Weights & Biases", lambda row: tracked.log(dict(row)))
        stack.pop_all()
        tracked.finish()


@contextlib.contextmanager
def mlflow_hook(run: TrackedRun) -> Iterator[Hook]:
    """Send rows to MLflow, to ``MLFLOW_TRACKING_URI`` and the experiment ``MLFLOW_EXPERIMENT_NAME``.

    Raises:
        InputError: mlflow is missing, or refuses to start.
    """
    require_tracker("mlflow")
    import mlflow  # pyright: ignore[reportMissingImports] (an extra)

    with _starting("MLflow"):
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        mlflow.set_experiment(name)
        before = mlflow.search_runs(
            experiment_names=[name], filter_string=f"tags.`{MLFLOW_TAG}` = '{run.run_id}'", output_format="list"
        )
        if before:
            mlflow.start_run(run_id=before[0].info.run_id)
        else:
            mlflow.start_run(run_name=run.name, tags={MLFLOW_TAG: run.run_id})
            mlflow.log_params(_flat(run.config))
    with contextlib.ExitStack() as stack:
        stack.callback(mlflow.end_run, "FAILED")
        yield _never_failing("MLflow", lambda row: mlflow.log_metrics(dict(row), step=int(row["epoch"])))
        stack.pop_all()
        mlflow.end_run()


TRACKERS: Mapping[str, Callable[[TrackedRun], AbstractContextManager[Hook]]] = {
    "mlflow": mlflow_hook,
    "wandb": wandb_hook,
}
"""Trackers by the names that ``routerjax train --log`` takes, which are those of their packages and extras."""


def require_tracker(name: str) -> None:
    """Raise InputError unless there is such a tracker, and its package is installed."""
    choose(name, TRACKERS, "the tracker")
    require_extra(name, name, f"--log {name}")


@contextlib.contextmanager
def _starting(tracker: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever kind their packages have
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{tracker} does not start: {type(error).__name__}: {reason}") from error


def _never_failing(tracker: str, send: Hook) -> Hook:
    """Hook whose failures are logged: a service that is away ends no training."""

    def hook(row: Mapping[str, float]) -> None:
        try:
            send(row)
        except Exception as error:
            logger.warning("%s did not take the row of epoch %d: %s", tracker, row["epoch"], error)

    return hook


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names, as ``--set`` takes them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_section = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return flat
