"""Ctrl-C during training: a request that the loop reads where its state is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
import types
from collections.abc import Iterator


class Interrupt:
    """State of Ctrl-C.

    Attributes:
        requested: once; the loop is to stop at the next step's end.
        forced: again, while the loop was on its way to that end: its state may be half-made.
    """

    def __init__(self) -> None:
        self.requested = self.forced = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Keep the first Ctrl-C until :meth:`Interrupt.check`; hand a second one to the handler that was there before.

    One that the body did not check for raises KeyboardInterrupt at its end.

    Where Ctrl-C is not handled by Python (another thread, nohup), nothing is changed.
    """
    interrupt = Interrupt()
    previous = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: types.FrameType | None) -> None:
        interrupt.forced = interrupt.requested
        interrupt.requested = True
        if interrupt.forced and callable(previous):
            previous(number, frame)

    handles = threading.current_thread() is threading.main_thread() and callable(previous)
    if handles:
        signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        if handles:
            signal.signal(signal.SIGINT, previous)
    interrupt.check()  # it came after the body's last look
