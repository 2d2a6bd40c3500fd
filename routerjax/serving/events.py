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
        DamagedStreamError: its data are no JSON object, or its choices none of a chat completion.
    """

    def __init__(self, content: bytes) -> None:
        self.fields: dict[str, Any] = {}
        self._choices: list[dict[str, Any]] = []
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
        choices = fields.get("choices") or []
        if not isinstance(choices, list) or not all(map(_is_choice, choices)):
            raise DamagedStreamError("an event whose choices are none")
        self.fields, self._choices = fields, choices

    @property
    def is_error(self) -> bool:
        """True if the upstream says that it failed."""
        return bool(self.fields.get("error"))

    @property
    def has_token(self) -> bool:
        """True if it holds something of an answer, more than the role of who answers."""
        return any(
            choice.get("finish_reason") or any(value for name, value in _delta(choice).items() if name != "role")
            for choice in self._choices
        )

    @property
    def begun(self) -> set[int]:
        """Indices of choices that the event adds to."""
        return {choice.get("index", 0) for choice in self._choices}

    @property
    def finished(self) -> set[int]:
        """Indices of choices whose answer ends here."""
        return {choice.get("index", 0) for choice in self._choices if choice.get("finish_reason")}


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    return choice.get("delta") or {}


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(_delta(choice), dict) and isinstance(choice.get("index"), int | None)
