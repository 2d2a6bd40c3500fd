"""Surroundings of every request: its body within limits, its token, its end with its client, its record, its errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import traceback
from collections.abc import Awaitable, Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routerjax.serving.access_log import AccessLog, Record
from routerjax.serving.api_errors import AUTHENTICATION, SERVER, ApiError
from routerjax.serving.metrics import Metrics

logger = logging.getLogger(__name__)

RECORD = "routerjax.record"
"""Place of a request's :class:`routerjax.serving.access_log.Record` in its scope."""


class ClientGoneError(Exception):
    """The client went away before it was answered."""


class Guard:
    """ASGI application around another.

    Args:
        app: whose requests are guarded; an :class:`ApiError` that it raises is answered.
        paths: that metrics name.
        open_paths: that need no token.
        token: bearer token that clients must send; None for none.
        max_body_bytes, body_seconds: that the body of a request may have, and take to come.
        metrics, log: where requests are counted and written.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Collection[str],
        open_paths: Collection[str],
        token: str | None,
        max_body_bytes: int,
        body_seconds: float,
        metrics: Metrics,
        log: AccessLog,
    ) -> None:
        self._app, self._paths, self._open_paths = app, paths, open_paths
        self._token = None if token is None else f"Bearer {token}".encode()
        self._max_body_bytes, self._body_seconds = max_body_bytes, body_seconds
        self._metrics, self._log = metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[RECORD] = Record(method=scope["method"], path=scope["path"][:200])
        request_id = (b"x-routerjax-request-id", record.request_id.encode())

        async def recorded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", []), request_id]
            await send(message)
            record.is_sent = message["type"] == "http.response.body" and not message.get("more_body", False)

        self._metrics.running.inc()
        try:
            await self._answer(scope, receive, recorded_send, record)
        except ClientGoneError:
            record.error = "disconnected"
            self._metrics.disconnects.inc()
        except asyncio.CancelledError:
            record.error = "cut_off"
            raise
        finally:
            self._metrics.running.dec()
            path = record.path if record.path in self._paths else "other"
            self._metrics.requests.labels(path, str(record.status or "none")).inc()
            self._log.write(record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        try:
            self._require_token(scope)
            try:
                async with asyncio.timeout(self._body_seconds):
                    body = await self._body(scope, receive)
            except TimeoutError:
                message = f"the body did not come whole within {self._body_seconds:g} seconds"
                raise ApiError(408, message, code="body_too_slow") from None
            await _until_disconnect(receive, self._app(scope, _replay(body), send), record)
        except ClientGoneError:
            raise
        except ApiError as error:
            await self._refuse(error, scope, receive, send, record)
        except HTTPException as error:  # of Starlette: no such path, no such method
            refusal = ApiError(error.status_code, f"{error.detail}: {record.method} {record.path}", code="not_found")
            await self._refuse(refusal, scope, receive, send, record)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]  # no text of the error: it may hold a prompt
            logger.error("a defect: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
            refusal = ApiError(500, "the server failed", SERVER, code="internal_error")
            record.error = refusal.code
            if record.status is None:
                await self._refuse(refusal, scope, receive, send, record)

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        record.error = error.code or error.kind
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if error.status in (408, 413):  # the rest of the body is not read
            headers["Connection"] = "close"
        response = Response(error.content(), error.status, headers, "application/json")
        await response(scope, receive, send)

    def _require_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in self._open_paths:
            return
        given = Headers(scope=scope).get("Authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, self._token):
            message = "the bearer token of this server is missing or wrong"
            raise ApiError(401, message, AUTHENTICATION, code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers, body = Headers(scope=scope), bytearray()
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise ApiError(415, "the body must not be compressed", code="unsupported_encoding")
        length = headers.get("Content-Length", "0")
        is_large = length.isdecimal() and int(length) > self._max_body_bytes
        while not is_large:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            is_large = len(body) > self._max_body_bytes
            if not message.get("more_body", False):
                break
        if is_large:
            raise ApiError(413, f"the body has more than {self._max_body_bytes} bytes", code="body_too_large")
        return bytes(body)


async def _until_disconnect(receive: Receive, answering: Awaitable[None], record: Record) -> None:
    """Await an answer, or cancel it, and with it the request to an upstream, when the client goes away.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(answering)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not (task.done() or record.is_sent):
            raise ClientGoneError
        await task
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes) -> Receive:
    """Give a body that is read already to an application; it is not told of the client's end, by which it ends."""
    is_given = False

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            await asyncio.Event().wait()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
