"""Requests for chat completions, of which nothing but the model's name is ever written anew."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from routerjax.serving.api_errors import ApiError

SPACE = re.compile(r"[ \t\n\r]*")
# Fields that the server reads. Two of one name could be read as one here and as the other upstream.
READ = ("model", "messages", "stream")

# Numbers are passed on as they are written: here, none is too long to be read.
_DECODER = json.JSONDecoder(parse_int=float)


@dataclass(frozen=True)
class ChatRequest:
    """Body of a request for a chat completion.

    Attributes:
        text: as it came.
        fields: its fields.
        model: the name that it asks for.
    """

    text: str
    fields: dict[str, Any]
    model: str
    _place: tuple[int, int]

    @property
    def streams(self) -> bool:
        """True if a stream of events is asked for."""
        return self.fields.get("stream") is True

    def asking(self, model: str) -> bytes:
        """Write the body with another model's name; every other byte is as it came."""
        start, end = self._place
        return f"{self.text[:start]}{json.dumps(model)}{self.text[end:]}".encode()


def read_chat_request(body: bytes) -> ChatRequest:
    """Read the body of a request for a chat completion.

    Raises:
        ApiError: it is no JSON object in UTF-8 with a model's name, or has a field twice that the server reads.
    """
    try:
        text = body.decode()
        fields, places = _fields(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body must be a JSON object in UTF-8: {_reason(error)}", code="invalid_json") from None
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "model must be the name of a model", param="model")
    return ChatRequest(text, fields, model, places["model"])


def _fields(text: str) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Fields of a JSON object, and where the value of each stands in the text.

    Raises:
        ValueError: it is none.
    """
    fields: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    position = _skip(text, _after(text, _skip(text, 0), "{"))
    while text[position : position + 1] != "}":
        if fields:
            position = _skip(text, _after(text, position, ","))
        key, position = _DECODER.raw_decode(text, position)
        if not isinstance(key, str):
            raise ValueError(f"a key must be text at character {position}")
        if key in fields and key in READ:
            raise ValueError(f"the field {key} is there twice")
        start = _skip(text, _after(text, _skip(text, position), ":"))
        fields[key], end = _DECODER.raw_decode(text, start)
        places[key] = (start, end)
        position = _skip(text, end)
    if _skip(text, position + 1) != len(text):
        raise ValueError(f"more after the object at character {position + 1}")
    return fields, places


def _skip(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return position if match is None else match.end()


def _after(text: str, position: int, character: str) -> int:
    if text[position : position + 1] != character:
        raise ValueError(f"expected {character!r} at character {position}")
    return position + 1


def _reason(error: Exception) -> str:
    """Message of an error without the text that it is about."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is none of UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
