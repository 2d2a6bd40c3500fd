"""Endpoints of others: their addresses and keys, the waits that they ask for, and their words without a key."""

from __future__ import annotations

import datetime
import email.utils
import json
import math
import urllib.parse
from collections.abc import Mapping

import httpx2

from routerjax.errors import InputError

BUSY = (408, 409, 425, 429)
"""Statuses of a request that is worth sending again as it is."""

# A shorter key is no secret ("x", where a server asks for none), and stands in many words.
SHORTEST_SECRET = 4


def require_address(address: str, name: str) -> str:
    """Return the base URL without a slash at its end, if it is one that holds no secret: it is written into files.

    Raises:
        InputError: not ``http(s)://HOST...``, or with a user, a password, a query or a fragment; those are not shown.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        is_plain = not ("@" in parts.netloc or "?" in address or "#" in address or "\\" in address)
        host = httpx2.URL(address).host.encode("idna")  # what a name service is asked for
        is_address = parts.scheme in ("http", "https") and bool(host) and (parts.port is None or parts.port > 0)
    except (ValueError, httpx2.InvalidURL):  # a bracket that is not closed, a port or a name that is none
        is_plain = is_address = False
    if not (is_address and is_plain and address.isascii() and address.isprintable() and " " not in address):
        raise InputError(
            f"{name} must look like http://HOST:PORT/v1: printable ASCII, without user, password, query or fragment; "
            "what it is set to is not shown, since it may hold a key"
        )
    return address.rstrip("/")


def require_key(key: str, name: str) -> str:
    """Return the key, if a header can hold it.

    Raises:
        InputError: white space around it, or characters other than printable ASCII; the key itself is not shown.
    """
    if key != key.strip():
        raise InputError(f"{name} begins or ends with white space (a line break of a file, mostly): remove it")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{name} must be of printable ASCII characters; this one of {len(key)} characters has others")
    return key


def without_key(content: bytes, key: str | None) -> bytes:
    """Content with ``[key]`` in the place of a key, in any form in which it may be written.

    Example:
        >>> without_key(b"Incorrect API key: sk-1234", "sk-1234")
        b'Incorrect API key: [key]'
    """
    if key is None or len(key) < SHORTEST_SECRET:
        return content
    forms = {key, urllib.parse.quote(key), urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1]}
    for form in sorted(forms, key=len, reverse=True):
        content = content.replace(form.encode(), b"[key]")
    return content


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait for, in a number or up to a date (RFC 9110, 10.2.3).

    Example:
        >>> retry_after({"Retry-After": "2"})
        2.0
    """
    for name, scale in (("retry-after-ms", 1e-3), ("Retry-After", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except KeyError:
            continue
        except ValueError:
            seconds = _seconds_until(headers[name])
        if 0 <= seconds < 1e6:
            return seconds
    return None


def _seconds_until(date: str) -> float:
    """Seconds until a date of a header, negative if it is past; NaN of what is no date."""
    try:
        moment = email.utils.parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return math.nan
    if moment.tzinfo is None:  # "-0000": in Greenwich, as all dates of headers are
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
