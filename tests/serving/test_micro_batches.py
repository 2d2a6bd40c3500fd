"""Micro-batches: who waits for whom, and what a failure of one text does to the others."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from routerjax.serving.micro_batches import MOST_WAITING, MicroBatches, OverloadedError

LARGEST_BATCH = 8


class Worker:
    """Computes lengths of texts once it may, and keeps what it was given."""

    def __init__(self) -> None:
        self.may_go, self.batches = threading.Event(), []

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.may_go.wait()
        self.batches.append(list(texts))
        if "bad" in texts:
            raise ValueError(f"{len(texts)} texts, one of them bad")
        return list(map(len, texts))


def test_what_comes_while_a_batch_is_computed_is_the_next_and_single_texts_are_first() -> None:
    async def run() -> None:
        worker = Worker()
        batches = MicroBatches(worker, LARGEST_BATCH, lambda rows, seconds: None)
        first = asyncio.create_task(batches(["x"]))
        await asyncio.sleep(0.01)
        many = asyncio.create_task(batches([f"{row:03d}" for row in range(10)]))
        single = [asyncio.create_task(batches(["a" * row])) for row in range(3)]
        gone = asyncio.create_task(batches(["gone"]))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        worker.may_go.set()
        assert (await first).result == [1]
        assert [(await task).result for task in single] == [[0], [1], [2]]
        assert (await many).result == [3] * 10
        assert worker.batches[:2] == [["x"], ["", "a", "aa", *[f"{row:03d}" for row in range(LARGEST_BATCH - 3)]]]
        assert not [batch for batch in worker.batches if "gone" in batch]
        batches.close()

    asyncio.run(run())


def test_a_text_that_fails_fails_alone() -> None:
    async def run() -> None:
        worker = Worker()
        worker.may_go.set()
        batches = MicroBatches(worker, LARGEST_BATCH, lambda rows, seconds: None)
        results = await asyncio.gather(*(batches([text]) for text in ("a", "bad", "abc")), return_exceptions=True)
        assert [getattr(result, "result", str(result)) for result in results] == [[1], "1 texts, one of them bad", [3]]
        with pytest.raises(ValueError, match="1 texts"):
            await batches(["a", "bad", "bad"])
        assert (await batches(["abcd"])).result == [4]
        batches.close()

    asyncio.run(run())


def test_more_than_can_wait_is_refused_at_once() -> None:
    async def run() -> None:
        worker = Worker()
        batches = MicroBatches(worker, LARGEST_BATCH, lambda rows, seconds: None)
        tasks = [asyncio.create_task(batches(["x"])) for _ in range(MOST_WAITING + 3)]
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in tasks) == 3
        worker.may_go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, OverloadedError) for result in results) == 3
        batches.close()

    asyncio.run(run())
