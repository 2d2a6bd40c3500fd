"""Surroundings of a command: standard streams that may be closed or lose their reader, signals, a child process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from routerjax.display import one_line

INTERRUPTED = "interrupted; what was written before stays valid (train, score: go on with --resume)"

# A prompt given for a column's name is a name of any length; the beginning and the end of a message say what is wrong.
BEGINNING, END = 750, 750


def fail(message: str) -> None:
    """Print an error as one line on standard error; the middle of a long one is left out, and how much of it."""
    print(one_line(f"routerjax: error: {message}", beginning=BEGINNING, end=END), file=sys.stderr)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Standard output and error that go on into nothing when their reader goes away.

    ``routerjax score ... | head`` is no error, and ``routerjax train ... |& head -1`` trains on. Standard error is no
    result: whatever else it cannot take (a full disk) does not end a command either.
    """
    for descriptor in range(3):  # a closed one would be given to the next file that is opened, and written into
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    output, error = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        if output is not None:
            sys.stdout = cast(TextIO, _Tolerant(output, BrokenPipeError))
        sys.stderr = cast(TextIO, _Tolerant(nowhere if error is None else error, OSError))
        try:
            yield
        finally:
            # What standard output cannot take must not be tried, and complained about, again when the interpreter ends.
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, _Tolerant):
                    stream.settle()
            sys.stdout, sys.stderr = output, error


class _Tolerant:
    """A text stream that drops what it cannot write, for some errors."""

    def __init__(self, stream: TextIO, dropped: type[OSError]) -> None:
        self._stream, self._dropped = stream, dropped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except self._dropped:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except self._dropped:
            self._discard()

    def settle(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Ctrl-C ends the body in order, as KeyboardInterrupt; a second one ends the process at once, in one line.

    Files that count are renamed into place when they are complete, so that an end at any moment leaves none half-made.
    The first may be lost, since destructors and extension modules that are being imported swallow any exception.
    """
    is_interrupted = is_reported = False

    def handle(number: int, frame: object) -> None:
        nonlocal is_interrupted
        if is_interrupted:
            if not is_reported:  # past Python's own buffers, which the first one may have interrupted
                os.write(2, f"\nrouterjax: error: {INTERRUPTED}\n".encode())
            os._exit(130)
        is_interrupted = True
        raise KeyboardInterrupt

    # Elsewhere (another thread, nohup, a notebook) Ctrl-C is not a command's to handle.
    is_main = threading.current_thread() is threading.main_thread()
    handles = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        fail(INTERRUPTED)
        is_reported = True
        raise
    finally:
        if handles and not is_interrupted:  # otherwise a second one may still come, while the interpreter ends
            signal.signal(signal.SIGINT, signal.default_int_handler)


def in_child(function: Callable[[], int], *, aborted: str) -> int:
    """Call a function in a child process; return its status, or that of the signal that ended it.

    JAX ends a process by SIGABRT where another one of its run is lost: nothing in that process can say so in a line.

    Args:
        function: returns an exit status. It is called before threads are started, since the process is forked.
        aborted: message where the child is ended by SIGABRT; the status is then 1.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _end_with_parent()
            status = function()
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)

    def pass_on(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    # A terminal sends Ctrl-C to both.
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on), signal.SIGINT: signal.getsignal(signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status >= 0:
        return status
    fail(aborted if -status == signal.SIGABRT else f"ended by {signal.Signals(-status).name}")
    return 1 if -status == signal.SIGABRT else 128 - status


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is killed, where it can (Linux)."""
    set_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
