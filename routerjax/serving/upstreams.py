"""Upstreams: requests to the endpoints of models, retried, and sent to another model where one fails.

Nothing that an HTTP library says of a failure is shown or logged: it may quote a header, and with it a key.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx2

from routerjax.endpoints import BUSY, retry_after, without_key
from routerjax.errors import InputError
from routerjax.serving.answer_stream import AnswerStream, BrokenStreamError
from routerjax.serving.api_errors import UPSTREAM, ApiError
from routerjax.serving.config import ServeConfig
from routerjax.serving.events import DamagedStreamError
from routerjax.serving.headers import Headers, for_client, for_upstream
from routerjax.serving.metrics import Metrics
from routerjax.serving.requests import ChatRequest
from routerjax.serving.usage import Usage, read_usage

# The upstream does not accept this server, or does not know its model: not the client's fault, and no retry helps.
MISCONFIGURED = (401, 403, 404, 407)
FIRST_WAIT_SECONDS = 0.25
LARGEST_ANSWER = 2**26
# An idle connection is not used again after so long: many servers close theirs after 5 seconds.
KEPT_SECONDS = 4.0
DECODED = {"", "identity", "gzip", "deflate"}


class FailedError(Exception):
    """Try that an upstream failed.

    Attributes:
        reason: of few, in a word: ``connect``, ``timeout``, ``broken``, ``malformed``, ``status_500`` ...
        is_worth_another: the same upstream may answer another try.
        wait: seconds that it asks to be left alone for; None where it does not say.
    """

    def __init__(self, reason: str, *, is_worth_another: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.is_worth_another, self.wait = reason, is_worth_another, wait


class ModelFailure(NamedTuple):
    """Model whose upstream failed for all tries, and the reason of the last."""

    model: str
    reason: str


class NoAnswerError(ApiError):
    """Error for a client whose request no model answered, for the reasons in ``failures``."""

    def __init__(self, failures: Sequence[ModelFailure]) -> None:
        self.failures = failures
        listed = ", ".join(f"{failure.model} ({failure.reason.replace('_', ' ')})" for failure in failures)
        message = f"no upstream answered: {listed}"
        if {failure.reason for failure in failures} == {"status_429"}:
            super().__init__(429, message, "rate_limit_error", code="upstream_rate_limited", retry_after=1)
        elif failures[-1].reason == "timeout":
            super().__init__(504, message, UPSTREAM, code="upstream_timeout")
        else:
            super().__init__(502, message, UPSTREAM, code="upstream_failed")


@dataclass
class Answer:
    """Answer of an upstream.

    Attributes:
        model: configured model that answers.
        status: of HTTP.
        headers: that are passed on.
        content: whole body; None of a stream.
        stream: events; None of a whole body.
        usage: tokens of a whole answer, if it says them.
        failures: of models that were tried before.
        seconds: from the request to the whole answer, or to the first token.
    """

    model: str
    status: int
    headers: Headers
    content: bytes | None = None
    stream: AnswerStream | None = None
    usage: Usage | None = None
    failures: list[ModelFailure] = field(default_factory=list)
    seconds: float = 0.0


class Upstreams:
    """Client of all upstreams.

    Args:
        config: of the server.
        metrics: where tries, failures and times are counted.

    Raises:
        InputError: a key is not set, or the environment's proxies or certificates cannot be used.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._keys = {name: upstream.key for name, upstream in config.models.items()}
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        try:
            self._client = httpx2.AsyncClient(
                follow_redirects=False,
                cookies=no_cookies,  # one client's would be sent with another's request
                timeout=httpx2.Timeout(None, connect=config.seconds.connect),
                limits=httpx2.Limits(
                    max_connections=None, max_keepalive_connections=128, keepalive_expiry=KEPT_SECONDS
                ),
            )
        except Exception:  # it reads the environment, and says what it found there: passwords of proxies, too
            raise InputError(
                "no connection can be made with the proxy or the certificates that the environment names (HTTPS_PROXY, "
                "HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE)"
            ) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def ask(self, models: Sequence[str], request: ChatRequest, headers: Iterable[tuple[bytes, bytes]]) -> Answer:
        """Ask the first of ``models`` that answers; its stream, if it is one, must be closed.

        Args:
            models: configured ones, in the order in which they are tried.
            request: of the client.
            headers: likewise.

        Raises:
            NoAnswerError: none of them answers.
        """
        forwarded = for_upstream(headers)
        failures: list[ModelFailure] = []
        for number, model in enumerate(models):
            if number:
                self._metrics.fallbacks.labels(models[number - 1], model).inc()
            try:
                answer = await self._ask_model(model, request, forwarded)
            except FailedError as error:
                failures.append(ModelFailure(model, error.reason))
            else:
                answer.failures = failures
                return answer
        raise NoAnswerError(failures)

    async def _ask_model(self, model: str, request: ChatRequest, headers: Headers) -> Answer:
        """Ask one model, with retries.

        Raises:
            FailedError: the last of its failures.
        """
        attempt = 0
        while True:
            start = time.perf_counter()
            try:
                answer = await self._try(model, request, headers)
            except FailedError as error:
                self._metrics.upstream_failures.labels(model, error.reason).inc()
                wait = error.wait
                if wait is None:
                    longest = min(FIRST_WAIT_SECONDS * 2**attempt, self._config.longest_wait)
                    wait = longest * random.uniform(0.5, 1.0)
                is_last = attempt >= self._config.retries or wait > self._config.longest_wait
                if is_last or not error.is_worth_another:
                    raise
                attempt += 1
                self._metrics.retries.labels(model).inc()
                await asyncio.sleep(wait)
            else:
                answer.seconds = time.perf_counter() - start
                is_stream = answer.stream is not None
                (self._metrics.first_token if is_stream else self._metrics.answer).labels(model).observe(answer.seconds)
                return answer

    async def _try(self, model: str, request: ChatRequest, headers: Headers) -> Answer:
        upstream, seconds = self._config.models[model], self._config.seconds
        built = self._client.build_request(
            "POST", upstream.url, content=request.asking(upstream.model or model), headers=self._headers(model, headers)
        )
        response = None
        try:
            async with asyncio.timeout(seconds.first_token if request.streams else seconds.answer):
                response = await self._client.send(built, stream=True)
                answer = await self._read(model, response)
            if answer.stream is None:
                await response.aclose()
            return answer
        except BaseException as error:
            if response is not None:
                await response.aclose()
            # The library's own errors are not chained to: they hold the request, and with it the key.
            failed = _failure(error)
            if failed is None:
                raise
            raise failed from None

    async def _read(self, model: str, response: httpx2.Response) -> Answer:
        """Read a whole answer, or a stream to its first token.

        Raises:
            FailedError: it is none to be passed on.
            DamagedStreamError, BrokenStreamError, httpx2.HTTPError, OSError: it breaks.
        """
        status = response.status_code
        if status >= 500 or status in BUSY:
            raise FailedError(f"status_{status}", wait=retry_after(response.headers))
        if status in MISCONFIGURED or not (200 <= status < 300 or status >= 400):
            raise FailedError(f"status_{status}", is_worth_another=False)
        if response.headers.get("Content-Encoding", "").strip().lower() not in DECODED:
            raise FailedError("malformed")
        key = self._keys[model]
        headers = [(name, without_key(value, key)) for name, value in for_client(response.headers.raw)]
        if status < 300 and response.headers.get("Content-Type", "").strip().lower().startswith("text/event-stream"):
            stream = AnswerStream(response, self._config.seconds.between_chunks, key)
            await stream.begin()
            return Answer(model, status, headers, stream=stream)
        content = await _whole(response)
        if status >= 400:
            return Answer(model, status, headers, content=without_key(content, key))
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise FailedError("malformed")
        if fields.get("error") and not fields.get("choices"):  # some say so with the status of a success
            raise FailedError("broken")
        return Answer(model, status, headers, content=content, usage=read_usage(fields))

    def _headers(self, model: str, forwarded: Headers) -> Headers:
        key = self._keys[model]
        authorization = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        kind = (b"content-type", b"application/json")
        return [*forwarded, kind, (b"accept-encoding", b"identity"), *authorization]


async def _whole(response: httpx2.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > LARGEST_ANSWER:
            raise FailedError("too_large", is_worth_another=False)
    return bytes(content)


def _failure(error: BaseException) -> FailedError | None:
    """Failure that an error of a try is; None where it is none of the upstream's."""
    if isinstance(error, FailedError):
        return error
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return FailedError("timeout")
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return FailedError("connect")
    if isinstance(error, DamagedStreamError | httpx2.DecodingError):
        return FailedError("malformed")
    if isinstance(error, BrokenStreamError | httpx2.HTTPError | httpx2.InvalidURL | OSError):
        return FailedError("broken")
    return FailedError("broken") if isinstance(error, httpx2.StreamError) else None
