"""Ctrl-C and SIGTERM during training: a request that the loop reads where its state is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator
from typing import Any

import jax

from routerjax import distributed
from routerjax.errors import PreemptedError


class Interrupt:
    """State of the signals that end a run.

    Attributes:
        requested: the first one's number; the loop is to stop at the next step's end.
        forced: another came while the loop was on its way to that end: its state may be half-made.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.forced = False
        self._calls = 0

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed, PreemptedError if SIGTERM came."""
        if self.requested is not None:
            raise PreemptedError if self.requested == signal.SIGTERM else KeyboardInterrupt

    def check_together(self) -> None:
        """Do so in all processes of the run at the same call; they call it equally often."""
        self._calls += 1
        if distributed.is_preempted(self._calls):
            self.requested = signal.SIGTERM
        self.check()


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Keep the first Ctrl-C or SIGTERM until :meth:`Interrupt.check`; leave a second one to what was there before.

    One that the body did not check for raises at its end. Where several processes share the run, Ctrl-C counts as
    SIGTERM, of which JAX tells the others.

    Where a signal is not to be handled (another thread, nohup), nothing is changed.
    """
    interrupt, previous = Interrupt(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    several = jax.process_count() > 1
    if several:
        del previous[signal.SIGTERM]  # JAX listens to it itself

    signals = 0

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            interrupt.forced = True
            _leave_to(previous[signal.Signals(number)], number, frame)
        elif several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            interrupt.requested = number

    is_main = threading.current_thread() is threading.main_thread()
    handled = [number for number, before in previous.items() if is_main and _is_deadly(number, before)]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield interrupt
    finally:
        for number in handled:
            signal.signal(number, previous[number])
    if not several:
        interrupt.check()  # it came after the body's last look


def _is_deadly(number: int, before: Any) -> bool:
    return callable(before) or (number == signal.SIGTERM and before == signal.SIG_DFL)


def _leave_to(before: Any, number: int, frame: types.FrameType | None) -> None:
    if callable(before):
        before(number, frame)
    else:
        signal.signal(number, before)
        os.kill(os.getpid(), number)
