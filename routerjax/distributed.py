"""Processes that share a run, each with devices of its own: JAX's distributed engine, and what they agree on."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from routerjax.errors import InputError
from routerjax.typing import PyTree

logger = logging.getLogger(__name__)

# A process that has not been heard of for so long counts as lost, and JAX ends the others.
HEARTBEAT_SECONDS = 30

# For what another process does meanwhile, such as embedding: one that is lost ends the others before.
LONGEST_WAIT_MS = 7 * 24 * 3600 * 1000

# Of barriers and messages, which all processes pass in one order. They go through JAX's coordination service, since
# collectives of devices give up after seconds.
_numbers = itertools.count()


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of a run, before JAX computes anything; log alone in process 0 from then on.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None finds all three where JAX does: on SLURM, Open MPI, TPU pods, GKE.
        num_processes: of the run.
        process_id: of this one, counted from 0.

    Raises:
        InputError: no cluster is found, or JAX was started already.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, TypeError) as error:
        raise InputError(
            f"no cluster was found here ({error}): give --coordinator HOST:PORT, --num-processes N and --process-id I"
        ) from error
    except RuntimeError as error:
        raise InputError(f"the processes could not be joined: {str(error).splitlines()[0]}") from error
    if not is_first():
        logging.getLogger("routerjax").setLevel(logging.WARNING)
    logger.info("%d processes, %d devices", jax.process_count(), jax.device_count())


def leave() -> None:
    """Wait until all processes of the run have come so far, and part from them; for the only one, do nothing."""
    jax.distributed.shutdown()


def is_first() -> bool:
    """If this is the process that writes files and logs: the only one, or process 0."""
    return jax.process_index() == 0


def barrier() -> None:
    """Wait until all processes of the run have come so far."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"routerjax/{next(_numbers)}", LONGEST_WAIT_MS)


def by_first(function: Callable[[], object]) -> None:
    """Call a function in process 0 alone, while the others wait for it.

    Raises:
        InputError: in every process, what the function refused.
    """
    refusal = ""
    if is_first():
        try:
            function()
        except InputError as error:
            refusal = str(error)
    refusal = of_first(refusal)
    if refusal:
        raise InputError(refusal)


def of_first(text: str) -> str:
    """Return the text of process 0 in every process."""
    if jax.process_count() == 1:
        return text
    key = f"routerjax/{next(_numbers)}"
    if is_first():
        _client().key_value_set(key, text)
        return text
    return _client().blocking_key_value_get(key, LONGEST_WAIT_MS)


def summed(value: np.ndarray) -> np.ndarray:
    """Sum arrays of one shape, float32 or smaller, over the processes, in their order."""
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.process_allgather(value)).sum(axis=0)


def on_every_host(tree: PyTree) -> PyTree:
    """Copy arrays to the host of every process, wherever their parts lie; each is whole on a device for a while."""

    def gathered(leaf: jax.Array) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gathered, tree)


def is_preempted(call: int) -> bool:
    """If all processes are to stop after this call of the loop: one of them was sent SIGTERM.

    Args:
        call: grows by one from call to call, alike in all processes.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)


@contextlib.contextmanager
def in_first(manager: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """Enter a context in process 0 alone; what it refuses is refused by all."""
    with contextlib.ExitStack() as stack:
        by_first(lambda: stack.enter_context(manager))
        yield


def _client() -> Any:
    """Client of the service through which JAX's processes find each other; JAX shows it nowhere else."""
    return jax_distributed.global_state.client
