"""Compilation time, as JAX itself reports it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax.monitoring


class CompileClock:
    """Seconds that JAX has traced, lowered and compiled since the clock was made."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """So far."""
        return sum(end - start for start, end in self._spans)

    def on_span(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        """Listener of JAX's time spans."""
        if event.startswith("/jax/core/compile/"):
            # A function that is traced within another is reported first, and its span lies within the other's.
            self._spans = [span for span in self._spans if span[0] < start_time]
            self._spans.append((start_time, end_time))


@contextlib.contextmanager
def compile_clock() -> Iterator[CompileClock]:
    """Measure compilation in the body."""
    clock = CompileClock()
    jax.monitoring.register_event_time_span_listener(clock.on_span)
    try:
        yield clock
    finally:
        jax.monitoring.unregister_event_time_span_listener(clock.on_span)
