"""Batches made ahead in a background thread, so that the device need not wait for the host."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

# Batches that are made, and on their devices, before a step asks for them: one that is late does not stall the device.
BATCHES_AHEAD = 3

ItemT = TypeVar("ItemT")


class Prefetch(Generic[ItemT]):
    """Iterator over items that a background thread makes, at most ``ahead`` of them before they are asked for.

    Their order and values are those of ``items``, and an exception in it is raised here, in its place. The thread ends
    with the items, or when the context is left, whatever the reason.

    Args:
        items: are iterated over, and closed if they are a generator, in the thread alone.
        ahead: the most items that are made and not yet taken.

    Attributes:
        seconds: what the consumer has waited for items so far.

    Example:
        >>> with Prefetch(range(3), ahead=2) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """

    def __init__(self, items: Iterable[ItemT], *, ahead: int) -> None:
        self.seconds = 0.0
        self._made: queue.SimpleQueue[tuple[ItemT] | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._is_closed = False
        self._thread = threading.Thread(target=self._make, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _make(self, items: Iterable[ItemT]) -> None:
        try:
            iterator = iter(items)
            try:
                while self._has_room():
                    self._made.put((next(iterator),))
            finally:
                if isinstance(iterator, Generator):
                    iterator.close()
        except BaseException as error:  # StopIteration too: all of it is the consumer's
            self._made.put(error)

    def _has_room(self) -> bool:
        """Wait until another item may be made; False where none is wanted any more."""
        self._room.acquire()
        return not self._is_closed

    def __iter__(self) -> Iterator[ItemT]:
        return self

    def __next__(self) -> ItemT:
        began = time.perf_counter()
        made = self._made.get()
        self.seconds += time.perf_counter() - began
        if isinstance(made, BaseException):
            self._made.put(made)  # again at the next call
            raise made
        self._room.release()
        return made[0]

    def __enter__(self) -> Prefetch[ItemT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._room.release()
        self._thread.join()
