"""Processes that share a run, each with devices of its own: JAX's distributed engine, and what they agree on."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from routerjax.errors import InputError
from routerjax.typing import PyTree

logger = logging.getLogger(__name__)

# JAX ends a process that has not met the others by then.
JOIN_SECONDS = 300

# A process that has not been heard of for so long counts as lost, and JAX ends the others.
HEARTBEAT_SECONDS = 30

LARGEST_PORT = 65535

# For what another process does meanwhile, such as embedding: one that is lost ends the others before.
LONGEST_WAIT_MS = 7 * 24 * 3600 * 1000

# Prefix of the keys of messages, which the service keeps until they are deleted.
MESSAGES = "routerjax/"

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
        InputError: the three cannot be those of a process, no cluster is found, or JAX was started already.
    """
    if coordinator is not None:
        _require_place(coordinator, num_processes, process_id)
        logger.info(
            "process %d waits at %s for all %d, for %d seconds at most",
            *(process_id, coordinator, num_processes, JOIN_SECONDS),
        )
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS,
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


def _require_place(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Raise InputError where JAX would end the process, or take another port: bad numbers, a port that is in use."""
    match = re.fullmatch(r"(.+):(\d{1,5})", coordinator, re.ASCII)
    port = int(match[2]) if match else 0
    if not 1 <= port <= LARGEST_PORT:
        raise InputError(f"--coordinator must be HOST:PORT, with a port from 1 to {LARGEST_PORT}, got {coordinator!r}")
    if num_processes is None or num_processes < 1:
        raise InputError(f"--num-processes must be 1 or more, got {num_processes}")
    if process_id is None or not 0 <= process_id < num_processes:
        raise InputError(f"--process-id must be from 0 to {num_processes - 1}, got {process_id}")
    try:
        socket.getaddrinfo(match[1].strip("[]") if match else "", port)
    except OSError as error:  # a service's name may have an address once its first process runs
        logger.warning("--coordinator %s: no address is known of this host (%s)", coordinator, error.strerror)
    if process_id > 0 or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:  # which names another port to listen on
        return
    # JAX would listen on a port with another run, each process joining either.
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        raise InputError(
            f"--coordinator {coordinator}: process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}): "
            "give all processes a free one"
        ) from error


def leave() -> None:
    """Wait until all processes of the run have come so far, and part from them; for the only one, do nothing."""
    jax.distributed.shutdown()


def is_first() -> bool:
    """If this is the process that writes files and logs: the only one, or process 0."""
    return jax.process_index() == 0


def hides_bars() -> bool | None:
    """Return ``disable`` of tqdm's: the first process shows bars, on a terminal, and the others none."""
    return None if is_first() else True


def barrier() -> None:
    """Wait until all processes of the run have come so far, and forget the messages that all have read by then."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"{MESSAGES}{next(_numbers)}", LONGEST_WAIT_MS)
        if is_first():
            _client().key_value_delete(MESSAGES)


def by_first(function: Callable[[], object]) -> None:
    """Call a function in process 0 alone, while the others wait for it.

    Raises:
        InputError: in every process, what the function refused; they have parted then.
    """
    refusal = ""
    if is_first():
        try:
            function()
        except InputError as error:
            refusal = str(error)
    refusal = of_first(refusal)
    if refusal:
        leave()  # the service of process 0 must not end before the others have read this
        raise InputError(refusal)


def of_first(text: str) -> str:
    """Return the text of process 0 in every process."""
    if jax.process_count() == 1:
        return text
    key = f"{MESSAGES}{next(_numbers)}"
    if is_first():
        _client().key_value_set(key, text)
        return text
    return _client().blocking_key_value_get(key, LONGEST_WAIT_MS)


def require_alike(described: Mapping[str, object]) -> None:
    """Refuse, in every process, what the processes describe differently; they have parted then.

    Args:
        described: JSON by names, the same names in all processes.

    Raises:
        InputError: names what differs, and in which process.
    """
    if jax.process_count() == 1:
        return
    number = next(_numbers)
    _client().key_value_set(f"{MESSAGES}{number}/{jax.process_index()}", json.dumps(described))
    first: dict[str, object] = {}
    for index in range(jax.process_count()):
        other = json.loads(_client().blocking_key_value_get(f"{MESSAGES}{number}/{index}", LONGEST_WAIT_MS))
        first = first or other
        different = sorted(name for name in first if first[name] != other[name])
        if different:
            leave()  # the service of process 0 must not end before the others have read this
            raise InputError(
                f"process {index} differs from process 0 in {', '.join(different)}: start all processes with one "
                "command, on the same files and versions"
            )


def summed(value: np.ndarray) -> np.ndarray:
    """Sum arrays of one shape, float32 or smaller, over the processes, in their order."""
    if jax.process_count() == 1:
        return value
    barrier()  # a collective waits for seconds only, and one process may have had more to do
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
