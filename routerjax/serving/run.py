"""Running server: its socket, its signals, and its end, which waits for what runs."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from prometheus_client import disable_created_metrics
from starlette.types import ASGIApp

from routerjax.errors import InputError
from routerjax.serving.app import Server

logger = logging.getLogger(__name__)

# Connections that wait to be accepted.
BACKLOG = 2048
# Connections that are idle for longer than clients keep them: one that the server closes as it is used again loses a
# request, and many clients keep theirs for the 5 seconds that are uvicorn's default.
KEEP_ALIVE_SECONDS = 75
# The thread that scores waits no longer than this for the one that answers, and the other way round. It is 5 ms each
# time otherwise, about as long as a bundle takes for a short prompt.
SWITCH_SECONDS = 5e-4
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket; port 0 is any free one.

    Raises:
        InputError: ``host`` is no name.
        OSError: no such host, or the port is in use; names both.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except ValueError as error:
        raise InputError(f"--host must be an address or the name of a machine, got {host[:80]!r}") from error
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def serve(server: Server, listening: socket.socket, *, grace: float) -> bool:
    """Serve until SIGTERM or Ctrl-C; a second Ctrl-C ends it at once.

    Args:
        server: whose application is served.
        listening: socket, see :func:`listen`.
        grace: seconds that requests have to end in, once the server is to end.

    Returns:
        False if the router could not be made ready.
    """
    is_failed = False

    def fail() -> None:
        nonlocal is_failed
        is_failed = running.should_exit = True

    server.on_failure = fail
    disable_created_metrics()  # a second line for each counter, which nothing asks for
    for name in ("uvicorn", "httpx2", "httpcore2"):  # they log addresses, and headers where they are set to DEBUG
        logging.getLogger(name).setLevel(logging.WARNING)
    running = uvicorn.Server(uvicorn_settings(server.app, grace=grace))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with _signals_end(running):
            running.run(sockets=[listening])
    finally:
        sys.setswitchinterval(interval)
    return not is_failed


def uvicorn_settings(app: ASGIApp, *, grace: float) -> uvicorn.Config:
    """Settings under which an application is served, see :func:`serve`."""
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace,  # pyright: ignore[reportArgumentType] (seconds of asyncio, which may be a part)
    )


@contextmanager
def _signals_end(running: uvicorn.Server) -> Iterator[None]:
    """End a server by signals from before it listens to them, until after it has ended and raises them again."""

    def end(*_: object) -> None:
        running.should_exit = True

    before = {}
    with suppress(ValueError):  # not in the main thread
        before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
