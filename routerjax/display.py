"""Text of others (names of models and files, prompts) as it may be shown: on a terminal, in a log, in Markdown.

What a name holds is data: it must neither move a terminal's cursor, nor reverse the text around it, nor start a line, a
cell, a link or an element of its own.
"""

from __future__ import annotations

import html
import json
import re

NO_ASCII = re.compile(r"[^ -~]")
# What starts something in Markdown; an underscore within a word does not.
MARKDOWN = re.compile(r"[\\`*\[\]|~#!]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def printable(text: str) -> str:
    """Write characters that are not visible ones (controls, line ends, bidirectional marks) as Python's escapes.

    Example:
        >>> print(printable("naïve 模型\\n\\x1b[2J\\u202e"))
        naïve 模型\\n\\x1b[2J\\u202e
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def one_line(text: str, *, beginning: int, end: int = 0) -> str:
    """Write text on one line, as :func:`printable` does; of a long one the beginning and the end.

    Args:
        text: of any length.
        beginning: characters of a long one that are kept.
        end: likewise.

    Example:
        >>> one_line("a\\n  b", beginning=3), one_line("0123456789", beginning=3, end=2)
        ('a b', '012 [... 5 characters left out ...] 89')
    """
    line = printable(" ".join(text.split()))
    left_out = len(line) - beginning - end
    if left_out <= 0:
        return line
    return f"{line[:beginning]} [... {left_out} characters left out ...] {line[beginning + left_out :]}".rstrip()


def markdown(text: str) -> str:
    """Write text so that Markdown shows it as it is, on one line, in a table too.

    Example:
        >>> print(markdown("a|b <i>*c*</i>\\nsim_large"))
        a\\|b &lt;i&gt;\\*c\\*&lt;/i&gt;\\\\nsim_large
    """
    return html.escape(MARKDOWN.sub(r"\\\g<0>", printable(text)), quote=False)


def printable_json(text: str, *, ascii_only: bool = False) -> str:
    """Write characters beyond ASCII that are not visible ones as JSON's escapes: the same JSON, and safe to print.

    Args:
        text: JSON.
        ascii_only: escape all that is beyond ASCII, for a stream of another encoding.

    Example:
        >>> print(printable_json('{"prompt": "naïve \\u202e"}'))
        {"prompt": "naïve \\u202e"}
    """
    if text.isprintable() and not ascii_only:
        return text

    def escape(character: re.Match[str]) -> str:
        shown = character[0]
        is_kept = shown.isprintable() and (shown.isascii() or not ascii_only)
        return shown if is_kept else "\\u007f" if shown == "\x7f" else json.dumps(shown)[1:-1]

    return NO_ASCII.sub(escape, text)
