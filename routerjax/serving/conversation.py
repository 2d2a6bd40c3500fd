"""Text that is scored of a conversation.

``last`` takes the last user turn, ``user_turns`` all of them, ``all`` every turn. Turns are joined by an empty line. Of
a turn of several parts the text is scored, and images, audio and files are left out. A tool's results are no user turn,
so that the steps of an agent go to one model. A conversation without a user turn is scored by its last turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from routerjax.errors import InputError, require_extra
from routerjax.prompts import valid_text
from routerjax.serving.api_errors import ApiError
from routerjax.serving.config import Scored

BETWEEN_TURNS = "\n\n"
TEXT_PARTS = ("text", "input_text")


class Conversations:
    """Reader of conversations.

    Args:
        scored: part that is scored.
        strip: regular expressions in RE2's syntax; what they match is left out of each turn: the scaffolding of agents,
            such as ``(?s)<environment>.*?</environment>``. RE2 searches in time linear in the text's length, where
            that pattern of Python's ``re`` could take minutes. There is a search for each match: a pattern that reads
            on and then matches less, such as ``<x>(.*</x>)?``, is slow on many matches still.

    Raises:
        InputError: a part that there is not, a pattern that is no regular expression, or google-re2 is missing.
    """

    def __init__(self, scored: Scored = "last", strip: Sequence[str] = ()) -> None:
        if scored not in get_args(Scored):
            raise InputError(f"scored must be one of {', '.join(get_args(Scored))}, got {scored!r}")
        self._scored, self._strip = scored, [_pattern(pattern) for pattern in strip]

    def text(self, messages: object) -> str:
        """Text that is scored.

        Raises:
            ApiError: no messages, or turns that are none.
        """
        if not isinstance(messages, list) or not messages:
            raise ApiError(400, "messages must be a list of one or more messages", param="messages")
        turns = [(message.get("role"), _text(message.get("content"), row)) for row, message in _objects(messages)]
        users = [text for role, text in turns if role == "user"]
        if self._scored == "all":
            chosen = [text for _, text in turns]
        elif not users:
            chosen = [turns[-1][1]]
        else:
            chosen = users if self._scored == "user_turns" else users[-1:]
        return BETWEEN_TURNS.join(filter(None, map(self.stripped, chosen)))

    def stripped(self, text: str) -> str:
        """Text as it is scored: without what the patterns match, and as valid Unicode."""
        text = valid_text(text)
        for pattern in self._strip:
            text = pattern.sub("", text)
        return text.strip() if self._strip else text


def _pattern(pattern: str) -> Any:
    require_extra("serve", "re2", "a pattern that strips")
    import re2

    options = re2.Options()
    options.log_errors = False  # the message below has them
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else "it is no valid Unicode"
        raise InputError(f"--strip must be a regular expression in RE2's syntax, got {pattern!r}: {reason}") from error


def _objects(messages: Sequence[object]) -> list[tuple[int, Mapping[str, Any]]]:
    for row, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ApiError(400, f"messages[{row}] must be an object with role and content", param=f"messages[{row}]")
    return list(enumerate(messages))  # pyright: ignore[reportReturnType]


def _text(content: object, row: int) -> str:
    """Text of a turn; empty where it has none, as of a call of tools."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        where = f"messages[{row}].content"
        raise ApiError(400, f"{where} must be text or a list of parts", param=where)
    texts = [part.get("text") for part in content if part.get("type") in TEXT_PARTS]
    return "\n".join(text for text in texts if isinstance(text, str))
