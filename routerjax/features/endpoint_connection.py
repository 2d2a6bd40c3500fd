"""Requests for embeddings to one endpoint: retried, bounded, and without the key in any word that comes of them."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Mapping

import httpx2
import numpy as np
from jaxtyping import Float32

from routerjax.errors import InputError
from routerjax.features.exchange import (
    Answer,
    UnansweredError,
    error_message,
    post_json,
    redirect_host,
    retry_after,
    shown,
)

logger = logging.getLogger(__name__)

# The endpoint reads the request and does not want it: too many prompts, one too long, or one it cannot take.
REFUSED = (400, 413, 422)
# Worth asking again as it is.
BUSY = (408, 409, 425, 429)
# Between two requests for the same prompts, doubling, unless the server names a time.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0
IMPATIENT_RETRIES = 1
# An answer may hold so many bytes and so many lists and objects for each prompt: 4,096 numbers of 32 characters, in two
# brackets, are one. A larger one is asked for in smaller parts.
BYTES, BRACKETS = 2**17, 16


def _largest_answer(count: int) -> int:
    return 2**20 + BYTES * count


class Refusal(Exception):
    """The endpoint will not take these prompts together; ``is_servers``: it says that the fault is its own."""

    def __init__(self, reason: str, *, is_servers: bool) -> None:
        super().__init__(reason)
        self.is_servers = is_servers


class WrongAnswer(Exception):
    """The answer is none to the request."""


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

    def ask(self, body: Mapping[str, object], count: int, *, is_patient: bool) -> Float32[np.ndarray, "prompts embed"]:
        """The embeddings of one answer to one request, retried.

        Args:
            body: of the request.
            count: prompts in it.
            is_patient: give a server that fails (5xx) all the retries; otherwise few, since its failure on several
                prompts is mostly that of one, which is found by asking for them apart.

        Raises:
            Refusal: the server does not want the request, or fails on it; a part of it may be answered.
            InputError: it does not accept the key, knows no such model, or redirects.
            OSError: no answer, or a wrong one, for all retries or within the time limit.
        """
        end, attempt = time.monotonic() + self._time_limit, 0
        while True:
            wait = None
            try:
                answer = post_json(
                    self._client,
                    f"{self._base_url}/embeddings",
                    body,
                    largest=_largest_answer(count),
                    headers={"Authorization": f"Bearer {self._key}"},
                    seconds=max(min(self._timeout, end - time.monotonic()), 0.01),
                )
            except UnansweredError as error:
                reason, status = f"does not answer: {shown(str(error), self._key)}", 0
            else:
                status = answer.status
                if status == 200:
                    try:
                        return self._read(answer, count)
                    except WrongAnswer as error:
                        reason = f"does not answer with one embedding for each prompt ({error})"
                else:
                    self._require_worth_asking(answer, body)
                    reason, wait = f"failed: {error_message(answer, self._key)}", retry_after(answer)
            if status >= 500 and not is_patient and attempt >= IMPATIENT_RETRIES:
                raise Refusal(reason, is_servers=True)
            if wait is None:
                wait = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
            if attempt >= self._max_retries:
                break
            if time.monotonic() + wait >= end:
                reason += f", within the time limit of {self._time_limit:g} s (ROUTERJAX_ENDPOINT_SECONDS sets another)"
                break
            logger.warning(
                "%s %s; asking again in %.1f s (retry %d of %d)",
                self._base_url,
                reason,
                wait,
                attempt + 1,
                self._max_retries,
            )
            time.sleep(wait)
            attempt += 1
        if status >= 500:
            raise Refusal(f"{reason}, after {attempt} retries", is_servers=True)
        raise OSError(f"{self._base_url} {reason}, after {attempt} retries")

    def _read(self, answer: Answer, count: int) -> Float32[np.ndarray, "prompts embed"]:
        """The embeddings of an answer of status 200.

        Raises:
            WrongAnswer: it holds something else.
            Refusal: it is too large to be read; a part of it may not be.
        """
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise OSError(
                f"{self._base_url} answers in the encoding {shown(encoding, self._key)!r}, which it was not asked for"
            )
        if not answer.is_whole:
            raise Refusal(f"answers with more than {_largest_answer(count):,} bytes", is_servers=True)
        try:
            if answer.content.count(b"[") + answer.content.count(b"{") > BRACKETS * (count + 1):
                raise ValueError("more lists and objects, or deeper ones, than embeddings are made of")
            described = json.loads(answer.content)
            if not isinstance(described, dict):
                raise ValueError("no JSON object")
            embedding = _read_embeddings(described, count)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WrongAnswer(shown(f"{type(error).__name__}: {error}", self._key)) from None
        self.tokens_used += _tokens(described)
        return embedding

    def _require_worth_asking(self, answer: Answer, body: Mapping[str, object]) -> None:
        """Refuse what another request would be answered with too."""
        status, message = answer.status, error_message(answer, self._key)
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
                f"{self._base_url} redirects to {redirect_host(answer, self._key)}, to which neither the key nor the "
                "prompts are sent; if it is right, set OPENAI_BASE_URL to it"
            )
        if status < 500 and status not in BUSY:
            raise OSError(f"{self._base_url} failed: {message}")


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
