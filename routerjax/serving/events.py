"""Events of a stream, as bytes that are passed on as they came and only looked into."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# An empty line ends an event; lines end in any of three ways.
END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
DONE = b"[DONE]"
LARGEST_EVENT = 2**24


class DamagedStreamError(Exception):
    """An upstream sent what is no stream of chat completions; the message holds none of it."""


class EventSplitter:
    """Splits a stream into whole events: bytes of a part of one are kept until the rest has come."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0

    def feed(self, content: bytes) -> Iterator[bytes]:
        """Yield the events that are whole now, each with the empty line that ends it.

        Raises:
            DamagedStreamError: an event of more than ``LARGEST_EVENT`` bytes.
        """
        self._rest += content
        start = 0
        while match := END_OF_EVENT.search(self._rest, max(start, self._searched)):
            yield bytes(self._rest[start : match.end()])
            start = self._searched = match.end()
        del self._rest[:start]
        self._searched = max(0, len(self._rest) - 3)
        if len(self._rest) > LARGEST_EVENT:
            raise DamagedStreamError(f"an event of more than {LARGEST_EVENT} bytes")

    @property
    def has_rest(self) -> bool:
        """True if a part of an event is kept."""
        return bool(self._rest.strip())

    def rest(self) -> bytes:
        """Part of an event that is kept."""
        return bytes(self._rest)


class Event:
    """Event of a stream of chat completions.

    Args:
        content: bytes of it.

    Attributes:
        fields: JSON of its data; empty of a comment and of the last event, which has none.
        is_last: True of ``data: [DONE]``.

    Raises:
        DamagedStreamError: its data are no JSON object.
    """

    def __init__(self, content: bytes) -> None:
        self.fields: dict[str, Any] = {}
        lines = [line[5:].removeprefix(b" ") for line in content.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        self.is_last = data.strip() == DONE
        if not data.strip() or self.is_last:
            return
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            raise DamagedStreamError("an event that is not JSON") from None
        if not isinstance(fields, dict):
            raise DamagedStreamError("an event that is no JSON object")
        self.fields = fields

    @property
    def is_error(self) -> bool:
        """True if the upstream says that it failed."""
        return bool(self.fields.get("error"))

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Choices that the event adds to."""
        choices = self.fields.get("choices")
        return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []

    @property
    def has_token(self) -> bool:
        """True if it holds something of an answer, more than the role of who answers."""
        for choice in self.choices:
            delta = choice.get("delta")
            if any(value for name, value in (delta or {}).items() if name != "role") or choice.get("finish_reason"):
                return True
        return False

    @property
    def finished(self) -> set[int]:
        """Indices of choices whose answer ends here."""
        return {choice.get("index", 0) for choice in self.choices if choice.get("finish_reason")}
