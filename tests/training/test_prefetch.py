"""Batches made ahead: the same ones, never more than are allowed, and no thread is left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from routerjax.training.prefetch import Prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class Counted:
    """Numbers that say how many of them were made, and whether their generator was closed, and where."""

    def __init__(self, count: int, *, fails: bool = False) -> None:
        self.count, self.fails, self.made = count, fails, 0
        self.closed_by: threading.Thread | None = None

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                self.made += 1
                yield number
            if self.fails:
                raise ValueError("the disk is gone")
        finally:
            self.closed_by = threading.current_thread()


def settled(numbers: Counted) -> int:
    """Number of items made, once no more are."""
    made = -1
    while made != numbers.made:
        made = numbers.made
        time.sleep(0.02)
    return made


def test_items_come_in_order_and_at_most_so_many_ahead() -> None:
    numbers = Counted(10)
    with Prefetch(numbers, ahead=3) as items:
        for place, item in enumerate(items):
            assert item == place
            assert settled(numbers) == min(10, place + 1 + 3)
        assert next(items, None) is None  # an end stays one
    assert not threads()


def test_an_exception_is_raised_in_its_place() -> None:
    received = []
    with Prefetch(Counted(2, fails=True), ahead=5) as items, pytest.raises(ValueError, match="the disk is gone"):
        received.extend(iter(items.__next__, None))
    assert received == [0, 1]
    assert not threads()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_items(count: int) -> None:
    numbers = Counted(1000)

    def consume() -> None:
        with Prefetch(numbers, ahead=2) as items:
            for _ in range(count):
                next(items)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not threads()
    assert numbers.made <= count + 2
    assert numbers.closed_by is not threading.main_thread()
    assert (numbers.closed_by is not None) == (numbers.made > 0)


def test_waiting_is_measured() -> None:
    def slow() -> Iterator[int]:
        for number in range(4):
            time.sleep(0.05)
            yield number

    with Prefetch(slow(), ahead=2) as items:
        assert list(items) == [0, 1, 2, 3]
        assert 0.15 < items.seconds < 1
    with Prefetch(slow(), ahead=2) as items:
        for _ in items:
            time.sleep(0.1)  # longer than an item takes
        assert items.seconds < 0.15
