"""Micro-batches of concurrent requests, computed in one thread beside the event loop."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")
Value = TypeVar("Value")

# More texts than these are not kept waiting: the server says that it is overloaded.
MOST_WAITING = 4096


class OverloadedError(Exception):
    """More texts wait than the server will answer in time."""


class Timed(NamedTuple, Generic[Result]):
    """A result, and the seconds from the request to it."""

    result: Result
    seconds: float


class _Waiting(NamedTuple, Generic[Result]):
    text: str
    future: asyncio.Future[Result]


class MicroBatches(Generic[Result]):
    """Computes texts in one worker thread: those that come while it computes are its next batch.

    No text waits for others to come. Texts of a request of many come after those of requests of one.

    Args:
        compute: results of at most ``largest`` texts; called in the worker thread alone.
        largest: batch; 1 where texts together take as long as one after the other, so that none waits for another.
        observe: called with the number of texts of each batch, and the seconds that it took.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[str]], Sequence[Result]],
        largest: int,
        observe: Callable[[int, float], None],
    ) -> None:
        self._compute, self._largest, self._observe = compute, largest, observe
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="routerjax-scores")
        self._single: collections.deque[_Waiting[Result]] = collections.deque()
        self._many: collections.deque[_Waiting[Result]] = collections.deque()
        self._running: asyncio.Task[None] | None = None

    async def in_thread(self, function: Callable[[], Value]) -> Value:
        """Run a function in the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def __call__(self, texts: Sequence[str]) -> Timed[list[Result]]:
        """Results of texts.

        Raises:
            OverloadedError: too many wait already.
        """
        queue = self._single if len(texts) == 1 else self._many
        if len(queue) + len(texts) > MOST_WAITING:
            raise OverloadedError
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        waiting = [_Waiting(text, loop.create_future()) for text in texts]
        queue.extend(waiting)
        if self._running is None:
            self._running = loop.create_task(self._run())
        try:
            results = [await item.future for item in waiting]
        finally:
            for item in waiting:  # of a request that is gone or has failed: what is not begun is left out
                if not item.future.cancel() and not item.future.cancelled():
                    item.future.exception()  # or asyncio would log it, with the text that it is about
        return Timed(results, time.perf_counter() - start)

    async def _run(self) -> None:
        try:
            while batch := self._next():
                start = time.perf_counter()
                texts = [item.text for item in batch]
                try:
                    loop = asyncio.get_running_loop()
                    results = await loop.run_in_executor(self._thread, self._compute, texts)
                except Exception as error:
                    await self._one_by_one(batch, error)
                    continue
                self._observe(len(batch), time.perf_counter() - start)
                for item, result in zip(batch, results, strict=True):
                    if not item.future.done():
                        item.future.set_result(result)
        finally:
            self._running = None

    async def _one_by_one(self, batch: Sequence[_Waiting[Result]], error: Exception) -> None:
        """Compute the texts of a failed batch apart: one that cannot be read is no fault of the others."""
        for item in batch:
            try:
                if len(batch) == 1:
                    raise error
                loop = asyncio.get_running_loop()
                (result,) = await loop.run_in_executor(self._thread, self._compute, [item.text])
            except Exception as own_error:
                if not item.future.done():
                    item.future.set_exception(own_error)
            else:
                if not item.future.done():
                    item.future.set_result(result)

    def _next(self) -> list[_Waiting[Result]]:
        batch: list[_Waiting[Result]] = []
        for queue in (self._single, self._many):
            while queue and len(batch) < self._largest:
                item = queue.popleft()
                if not item.future.done():
                    batch.append(item)
        return batch

    def close(self) -> None:
        """End the worker thread when it has computed what it computes."""
        self._thread.shutdown(wait=True, cancel_futures=True)
