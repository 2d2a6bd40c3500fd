"""Stream of an upstream's answer: held back to its first token, then passed on event by event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2

from routerjax.endpoints import without_key
from routerjax.serving.events import DamagedStreamError, Event, EventSplitter
from routerjax.serving.usage import Usage, read_usage

# An upstream that keeps its connection open after the last event keeps no client waiting for longer.
AFTER_END_SECONDS = 1.0


class BrokenStreamError(Exception):
    """A stream ended, or said that it failed, before its answer was whole."""


class AnswerStream:
    """Events of an answer, byte for byte; only whole events are passed on, so that an error can follow any of them.

    Args:
        response: whose body is the stream.
        limit: seconds from one chunk to the next.
        key: of the upstream, which its errors may repeat.

    Attributes:
        usage: tokens, once an event has said them.
    """

    def __init__(self, response: httpx2.Response, limit: float, key: str | None) -> None:
        self.usage: Usage | None = None
        self._response, self._limit, self._key = response, limit, key
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()
        self._splitter = EventSplitter()
        self._begin: list[bytes] = []
        self._is_done = self._has_token = self._has_failed = False
        self._begun: set[int] = set()
        self._finished: set[int] = set()

    async def begin(self) -> None:
        """Read to the first token, under the caller's time limit.

        Raises:
            BrokenStreamError: it ends before, or with an error.
            DamagedStreamError: it is no stream of chat completions.
            httpx2.HTTPError: it breaks.
        """
        while not self._has_token and not self._is_done:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise BrokenStreamError("it ended before the first token")
            for event in self._splitter.feed(chunk):
                self._begin.append(self._looked_into(event))
                if self._has_failed and not self._has_token:
                    raise BrokenStreamError("it failed before the first token")

    async def events(self) -> AsyncIterator[bytes]:
        """Yield all that came, from the beginning.

        Raises:
            BrokenStreamError, DamagedStreamError, TimeoutError, httpx2.HTTPError: it breaks; what was whole is yielded.
        """
        yield b"".join(self._begin)
        self._begin = []
        while True:
            try:
                async with asyncio.timeout(min(self._limit, AFTER_END_SECONDS) if self._is_done else self._limit):
                    chunk = await anext(self._chunks, None)
            except (TimeoutError, OSError, httpx2.HTTPError, httpx2.StreamError):
                if self._is_done:  # nothing of the answer is missing
                    return
                raise
            if chunk is None:
                break
            whole, damage = self._whole_events(chunk)
            if whole:
                yield whole
            if damage is not None:
                raise damage
        # The last event may lack the empty line that ends it. It is passed on where no error of ours has to follow it.
        rest = self._splitter.rest()
        last = self._looked_into(rest) if rest.strip() else b""
        is_whole = self._is_done or (bool(self._begun) and self._begun == self._finished)  # some send no [DONE]
        if not is_whole and not self._has_failed:
            raise BrokenStreamError("it ended before the answer did")
        if last:
            yield last

    async def close(self) -> None:
        """Close the connection, unless all of it is read."""
        await self._response.aclose()

    def _whole_events(self, chunk: bytes) -> tuple[bytes, DamagedStreamError | None]:
        """Events that a chunk makes whole, up to the first that is damaged."""
        whole = bytearray()
        try:
            for event in self._splitter.feed(chunk):
                whole += self._looked_into(event)
        except DamagedStreamError as error:
            return bytes(whole), error
        return bytes(whole), None

    def _looked_into(self, content: bytes) -> bytes:
        event = Event(content)
        self._is_done |= event.is_last
        self._has_token |= event.has_token
        self._begun |= event.begun
        self._finished |= event.finished
        self._has_failed |= event.is_error
        self.usage = read_usage(event.fields) or self.usage
        return without_key(content, self._key) if event.is_error else content
