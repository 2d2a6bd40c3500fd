"""Requests for embeddings to one endpoint: retried, bounded, and without the key in any word that comes of them."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import logging
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

import httpx2
import numpy as np
from jaxtyping import Float32

from routerjax.display import one_line
from routerjax.endpoints import BUSY, retry_after, without_key
from routerjax.errors import InputError

logger = logging.getLogger(__name__)

# The endpoint reads the request and does not want it: too many prompts, one too long, or one it cannot take.
REFUSED = (400, 413, 422)
# Between two requests for the same prompts, doubling, unless the server names a time.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0
# Of a request with several prompts that the server fails on, which is mostly the fault of one: asked for apart, it is
# found.
IMPATIENT_RETRIES = 1
# An answer may hold so many bytes for each prompt: 4,096 numbers of 32 characters. A larger one is asked for in smaller
# parts. Of an error, no more than so much is read, and so many characters of it are shown: of a beginning alone, since
# a key may be cut in two where reading ends.
BYTES_PER_PROMPT, LARGEST_ERROR, BEGINNING = 2**17, 2**16, 300


class Refusal(Exception):
    """The endpoint will not take these prompts together; ``is_servers``: it says that the fault is its own."""

    def __init__(self, reason: str, *, is_servers: bool) -> None:
        super().__init__(reason)
        self.is_servers = is_servers


class WrongAnswer(Exception):
    """The answer is none to the request."""


class UnansweredError(Exception):
    """No answer arrived: refused, reset, cut off, or not within the time."""


class Answer(NamedTuple):
    """Status, headers and body of an answer; ``is_whole`` is False where the body was longer than it may be."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    is_whole: bool


class EndpointConnection:
    """Asks for embeddings while it is entered.

    Args:
        base_url: ``/embeddings`` below it is asked.
        key: sent to it alone, and shown nowhere.
        max_retries: of one request.
        timeout: seconds that one request may take.
        time_limit: seconds that one request may take with all its retries.

    Attributes:
        tokens_used: that the endpoint has counted so far.

    Raises:
        InputError: proxies or certificates of the environment that cannot be used.
    """

    def __init__(self, base_url: str, key: str, *, max_retries: int, timeout: float, time_limit: float) -> None:
        self.tokens_used = 0
        self._base_url, self._key = base_url, key
        self._max_retries, self._timeout, self._time_limit = max_retries, timeout, time_limit
        try:
            self._client = httpx2.Client(follow_redirects=False)
        except Exception:  # it reads the environment, and says what it found there: passwords of proxies, too
            raise InputError(
                "no connection can be made with the proxy or the certificates that the environment names (HTTPS_PROXY, "
                "HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE)"
            ) from None

    def __enter__(self) -> EndpointConnection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def ask(self, body: Mapping[str, object], count: int) -> Float32[np.ndarray, "prompts embed"]:
        """The embeddings of one answer to one request, retried.

        Args:
            body: of the request.
            count: prompts in it.

        Raises:
            Refusal: the server does not want the request, or fails on it; a part of it may be answered.
            InputError: it does not accept the key, knows no such model, or redirects.
            OSError: no answer, or a wrong one, for all retries or within the time limit.
        """
        end, attempt = time.monotonic() + self._time_limit, 0
        while True:
            wait, status = None, 0
            try:
                answer = self._post(body, count, seconds=max(min(self._timeout, end - time.monotonic()), 0.01))
                status, wait = answer.status, retry_after(answer.headers)
                if status == 200:
                    return self._read(answer, count)
                self._require_worth_asking(answer, body)
                reason = f"failed: {self._message(answer)}"
            except UnansweredError as error:
                reason = f"does not answer: {self._shown(str(error))}"
            except WrongAnswer as error:
                reason = f"does not answer with one embedding for each prompt ({error})"
            is_servers = status >= 500
            if wait is None:
                wait = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
            if attempt >= (IMPATIENT_RETRIES if is_servers and count > 1 else self._max_retries):
                break
            if time.monotonic() + wait >= end:
                reason += f", within the time limit of {self._time_limit:g} s (ROUTERJAX_ENDPOINT_SECONDS sets another)"
                break
            attempt += 1
            logger.warning(
                "%s %s; asking again in %.1f s (retry %d of %d)",
                *(self._base_url, reason, wait, attempt, self._max_retries),
            )
            time.sleep(wait)
        reason += f", after {attempt} retries"
        raise Refusal(reason, is_servers=True) if is_servers else OSError(f"{self._base_url} {reason}")

    def _post(self, body: Mapping[str, object], count: int, *, seconds: float) -> Answer:
        """Send a request and read the answer; redirects are not followed, and nothing is decompressed.

        A thread of its own talks to the server, so that the time is that of the whole exchange, name look-up and
        headers that trickle in among it; one that is late is left to end by itself.

        Raises:
            UnansweredError: what happened to it instead of an answer; may hold words of the server.
        """
        end, late = time.monotonic() + seconds, f"no whole answer within {seconds:g} s"
        result: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        content = json.dumps(dict(body), ensure_ascii=False).encode()
        # A compressed answer could be a thousand times as large as what is counted here.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers["Authorization"] = f"Bearer {self._key}"

        def exchange() -> None:
            url = f"{self._base_url}/embeddings"
            try:
                with self._client.stream("POST", url, content=content, headers=headers, timeout=seconds) as response:
                    most = _largest_answer(count) if response.status_code == 200 else LARGEST_ERROR
                    parts, size = [], 0
                    for part in response.iter_raw():
                        parts.append(part)
                        size += len(part)
                        if size > most:
                            break
                        if time.monotonic() > end:  # what is there is a part, and no answer
                            raise TimeoutError(late)
                    answer = b"".join(parts)[:most]
                    result.set_result(Answer(response.status_code, response.headers, answer, is_whole=size <= most))
            except Exception as error:  # whatever ends the thread is said by the caller's
                result.set_exception(error)

        threading.Thread(target=exchange, daemon=True, name="routerjax-endpoint").start()
        try:
            return result.result(timeout=seconds)
        except TimeoutError:
            raise UnansweredError(late) from None
        except Exception as error:  # without the chain, whose frames and texts hold the request
            raise UnansweredError(f"{type(error).__name__} {error}".strip()) from None

    def _read(self, answer: Answer, count: int) -> Float32[np.ndarray, "prompts embed"]:
        """The embeddings of an answer of status 200.

        Raises:
            WrongAnswer: it holds something else.
            Refusal: it is too large to be read; a part of it may not be.
        """
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise OSError(
                f"{self._base_url} answers in the encoding {self._shown(encoding)!r}, which it was not asked for"
            )
        if not answer.is_whole:
            raise Refusal(f"answers with more than {_largest_answer(count):,} bytes", is_servers=True)
        try:
            described = json.loads(answer.content)
            if not isinstance(described, dict):
                raise ValueError("no JSON object")
            embedding = _read_embeddings(described, count)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WrongAnswer(self._shown(f"{type(error).__name__}: {error}")) from None
        self.tokens_used += _tokens(described)
        return embedding

    def _require_worth_asking(self, answer: Answer, body: Mapping[str, object]) -> None:
        """Refuse what another request would be answered with too."""
        status, message = answer.status, self._message(answer)
        if status in REFUSED:
            raise Refusal(message, is_servers=False)
        if status in (401, 403):
            raise InputError(f"{self._base_url} does not accept the key: {message}; set OPENAI_API_KEY")
        if status == 404:
            raise InputError(
                f"{self._base_url} has no embeddings of a model {body['model']!r}: {message}; check the name, and "
                "OPENAI_BASE_URL, which mostly ends in /v1"
            )
        if 300 <= status < 400:
            raise InputError(
                f"{self._base_url} redirects to {self._redirect_host(answer)}, to which neither the key nor the "
                "prompts are sent; if it is right, set OPENAI_BASE_URL to it"
            )
        if status < 500 and status not in BUSY:
            raise OSError(f"{self._base_url} failed: {message}")

    def _shown(self, text: str) -> str:
        """Words of a server on one line, as far as they can be shown: bounded, printable, and without the key."""
        content = without_key(text.encode("utf-8", "surrogatepass"), self._key)
        return one_line(content.decode("utf-8", "surrogatepass"), beginning=BEGINNING)

    def _message(self, answer: Answer) -> str:
        """Status and message of an answer other than 200, fit to be shown."""
        text = answer.content.decode("utf-8", "replace")
        try:
            error = json.loads(text)
            for name in ("error", "message"):
                error = error.get(name, error) if isinstance(error, dict) else error
            text = error if isinstance(error, str) else ""
        except (ValueError, RecursionError):
            pass
        return f"{answer.status} {self._shown(text)}".strip()

    def _redirect_host(self, answer: Answer) -> str:
        """Scheme and host of a redirect's target."""
        try:
            parts = urllib.parse.urlsplit(answer.headers.get("Location", ""))
            return self._shown(f"{parts.scheme}://{parts.hostname}" if parts.hostname else "another path")
        except ValueError:
            return "an address that is none"


def _largest_answer(count: int) -> int:
    return 2**20 + BYTES_PER_PROMPT * count


def _tokens(answer: dict) -> int:
    """Tokens that ``usage`` counts, which some servers leave out or half empty."""
    usage = answer.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else 0


def _read_embeddings(answer: dict, count: int) -> Float32[np.ndarray, "prompts embed"]:
    """The embeddings of an answer, by ``index``, whether as numbers or as base64 of little-endian float32.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: anything but ``count`` finite embeddings of one width.
    """
    by_index = {item["index"]: item["embedding"] for item in answer["data"]}
    if len(answer["data"]) != count or set(by_index) != set(range(count)):
        raise ValueError(f"{len(answer['data'])} embeddings, {len(by_index)} of different index, for {count} prompts")
    with np.errstate(over="ignore"):  # beyond float32 is not finite, which is refused below
        rows = [
            np.frombuffer(base64.b64decode(value, validate=True), "<f4")
            if isinstance(value, str)
            else np.asarray(value, np.float64).astype(np.float32)
            for value in map(by_index.__getitem__, range(count))
        ]
    embedding = np.stack(rows).astype(np.float32)
    if embedding.ndim != 2 or embedding.shape[1] == 0 or not np.isfinite(embedding).all():
        raise ValueError(f"embeddings of shape {embedding.shape}, or not finite")
    return embedding
