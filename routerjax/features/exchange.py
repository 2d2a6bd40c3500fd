"""Exchange of a request with a server, bounded in time and in size; what comes back as words is fit to be shown."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from routerjax.display import one_line
from routerjax.errors import InputError

if TYPE_CHECKING:
    import httpx2

# Of an answer that is an error, this much is read.
LARGEST_ERROR = 64 * 2**10
# And so many characters of it are shown: of a beginning alone, since a key may be cut in two where reading ends.
BEGINNING = 300
# A key shorter than this is no secret ("x", where a server asks for none), and stands in many words.
SHORTEST_SECRET = 4


class Answer(NamedTuple):
    """Status, headers and body of an answer; ``is_whole`` is False where the body was longer than it may be."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    is_whole: bool


class UnansweredError(Exception):
    """No answer arrived: refused, reset, cut off, or not within the time."""


def post_json(
    client: httpx2.Client,
    url: str,
    body: Mapping[str, object],
    *,
    headers: Mapping[str, str],
    seconds: float,
    largest: int,
) -> Answer:
    """Send ``body`` and read the answer; redirects are not followed, and nothing is decompressed.

    A thread of its own talks to the server, so that the time is that of the whole exchange, name look-up and headers
    that trickle in among it; one that is late is left to end by itself.

    Args:
        client: open while this runs.
        url: where to.
        body: as JSON.
        headers: besides those of JSON.
        seconds: that the whole exchange may take.
        largest: bytes of an answer that are read; fewer of one that is an error.

    Raises:
        UnansweredError: what happened to it instead of an answer; may hold words of the server.
    """
    end, late = time.monotonic() + seconds, UnansweredError(f"no whole answer within {seconds:g} s")
    outcome: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
    content = json.dumps(dict(body), ensure_ascii=False).encode()
    # A compressed answer could be a thousand times as large as what is counted here.
    sent = {**headers, "Content-Type": "application/json", "Accept-Encoding": "identity"}

    def exchange() -> None:
        try:
            with client.stream("POST", url, content=content, headers=sent, timeout=seconds) as response:
                most = largest if response.status_code == 200 else LARGEST_ERROR
                parts, size = [], 0
                for part in response.iter_raw():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        break
                    if time.monotonic() > end:  # what is there is a part, and no answer
                        raise late
                answer = b"".join(parts)[:most]
                outcome.put(Answer(response.status_code, response.headers, answer, is_whole=size <= most))
        except Exception as error:  # whatever ends the thread is said by the caller's
            outcome.put(error)

    threading.Thread(target=exchange, daemon=True, name="routerjax-endpoint").start()
    try:
        answer = outcome.get(timeout=seconds)
    except queue.Empty:
        raise late from None
    if isinstance(answer, UnansweredError):
        raise answer
    if isinstance(answer, Exception):
        # Without the chain, whose frames and texts hold the request.
        raise UnansweredError(f"{type(answer).__name__} {answer}".strip()) from None
    return answer


def require_key(key: str, name: str) -> str:
    """The key, if a header can hold it.

    Raises:
        InputError: white space around it, or characters other than printable ASCII; the key itself is not shown.
    """
    if key != key.strip():
        raise InputError(f"{name} begins or ends with white space (a line break of a file, mostly): remove it")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{name} must be of printable ASCII characters; this one of {len(key)} characters has others")
    return key


def require_address(address: str, name: str) -> str:
    """The base URL without a slash at its end, if it is one, and none that holds a secret: it is written into routers.

    Raises:
        InputError: not ``http(s)://HOST...``, or with a user, a password, a query or a fragment; those are not shown.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
        is_plain = not ("@" in parts.netloc or "?" in address or "#" in address or "\\" in address)
        is_address = parts.scheme in ("http", "https") and bool(host) and (port is None or port > 0)
    except ValueError:  # a bracket that is not closed, or a port that is none
        is_plain = is_address = False
    if not (is_address and is_plain and address.isascii() and address.isprintable() and " " not in address):
        raise InputError(
            f"{name} must look like http://HOST:PORT/v1: printable ASCII, without user, password, query or fragment; "
            "what it is set to is not shown, since it may hold a key"
        )
    return address.rstrip("/")


def shown(text: str, secret: str) -> str:
    """Words of a server on one line, as far as they can be shown: bounded, printable, and without the key."""
    if len(secret) >= SHORTEST_SECRET:
        forms = {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1]}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "[key]")
    return one_line(text, beginning=BEGINNING)


def error_message(answer: Answer, secret: str) -> str:
    """Return the message of an answer other than 200, fit to be shown."""
    text = answer.content.decode("utf-8", "replace")
    try:
        error = json.loads(text)
        if isinstance(error, dict):
            error = error.get("error", error)
        if isinstance(error, dict):
            error = error.get("message", error)
        text = error if isinstance(error, str) else ""
    except (ValueError, RecursionError):
        pass
    return f"{answer.status} {shown(text, secret)}".strip()


def redirect_host(answer: Answer, secret: str) -> str:
    """Return scheme and host of a redirect's target."""
    try:
        parts = urllib.parse.urlsplit(answer.headers.get("Location", ""))
        where = f"{parts.scheme}://{parts.hostname}" if parts.hostname else "another path"
    except ValueError:
        where = "an address that is none"
    return shown(where, secret)


def retry_after(answer: Answer) -> float | None:
    """Seconds that the server asks to wait for, where it does so in a number."""
    for name, scale in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            seconds = float(answer.headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= seconds <= 3600:
            return seconds
    return None
