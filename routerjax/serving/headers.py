"""Headers that pass through the server, and those that end at it."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
# Credentials of the client are for this server alone; what the body is, is said anew.
OF_THE_CLIENT_ALONE = {
    *(b"host", b"authorization", b"api-key", b"x-api-key", b"cookie", b"expect"),
    *(b"content-length", b"content-encoding", b"content-type", b"accept-encoding"),
    *(b"forwarded", b"origin", b"referer"),
}
OF_THE_UPSTREAM_ALONE = {
    *(b"content-length", b"content-encoding", b"set-cookie", b"date", b"server", b"www-authenticate"),
    *(b"alt-svc", b"strict-transport-security"),
}


def for_upstream(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers of a client that its upstream is sent; none starts a header of ours."""
    dropped = (b"x-forwarded-", b"x-routerjax-")
    return [(name, value) for name, value in _through(headers, OF_THE_CLIENT_ALONE) if not name.startswith(dropped)]


def for_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers of an upstream's answer that its client is sent."""
    kept = _through(headers, OF_THE_UPSTREAM_ALONE)
    return [(name, value) for name, value in kept if not name.startswith((b"x-routerjax-", b"access-control-"))]


def decision_headers(model: str, win_prob: float | None, threshold: float | None) -> Headers:
    """Headers that say which model answers, and by which decision, if there was one of a pair."""
    headers = [(b"x-routerjax-model", header_text(model))]
    if win_prob is not None:
        headers.append((b"x-routerjax-win-prob", f"{win_prob:.6f}".encode()))
        headers.append((b"x-routerjax-threshold", f"{threshold:g}".encode()))
    return headers


def header_text(text: str) -> bytes:
    """Text as a header can hold it: what is not visible ASCII is percent-encoded."""
    visible = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    return urllib.parse.quote(text, safe=visible).encode().strip()


def _through(headers: Iterable[tuple[bytes, bytes]], ends: set[bytes]) -> Headers:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        part.strip().lower() for name, value in lowered if name == b"connection" for part in value.split(b",")
    }  # headers that the connection's own header says are of this connection alone
    return [(name, value) for name, value in lowered if name not in HOP_BY_HOP | ends | named]
