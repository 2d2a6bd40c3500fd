"""Embeddings from an OpenAI-compatible endpoint: whatever serves ``POST /v1/embeddings``."""

from __future__ import annotations

import base64
import functools
import logging
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Float32

from routerjax.config import Truncation
from routerjax.errors import InputError
from routerjax.features.cache import EmbeddingCache, encode_once
from routerjax.features.encoder import SentenceEncoder, load_encoder
from routerjax.features.spec import FeatureSpec
from routerjax.prompts import valid_text

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

PREFIX = "openai:"
OPENAI_URL = "https://api.openai.com/v1"
PROMPTS_PER_REQUEST = 256
# The endpoint reads the request and does not want it: too many prompts, one too long, or one it cannot take.
REFUSED = (400, 413, 422)
# Between two requests for the same prompts, doubling: what the openai package waits too.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0


class EndpointEncoder:
    """A model behind an endpoint, in place of a :class:`SentenceEncoder`. Making one asks for nothing yet.

    The package openai retries what did not arrive or was put off (429, 5xx, timeouts), after the time that Retry-After
    names or a doubling one. What it takes for an answer is checked here, and asked for again likewise where it is not
    one finite embedding for each prompt. A request that is refused is halved, down to the prompt that is to blame; so
    servers that take few prompts at a time need no setting.

    The address comes from here or the environment, never from a router's folder: whoever made that folder would
    otherwise be sent the key and the prompts.

    Args:
        source: ``openai:MODEL``; or ``openai:MODEL?dimensions=N`` for models that can shorten their embeddings.
        base_url: default ``$OPENAI_BASE_URL``, or OpenAI's own. Part of the fingerprint, as is ``source``: at another
            address the same name may mean another model.
        api_key: default ``$OPENAI_API_KEY``.
        width: that the embeddings must have; default N, or that of the first answer.
        dollars_per_million_tokens: for the cost that is logged.
        max_retries: of one request.
        timeout: seconds that one request may take.

    Attributes:
        source: as given.
        fingerprint: ``SOURCE at ADDRESS``: what embeddings made elsewhere by the same model should declare.
        tokens_used: that the endpoint has counted so far.

    Raises:
        InputError: another form of ``source`` or ``base_url``.
    """

    def __init__(
        self,
        source: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        width: int | None = None,
        dollars_per_million_tokens: float | None = None,
        max_retries: int = 8,
        timeout: float = 60.0,
    ) -> None:
        form = re.fullmatch(rf"{PREFIX}([^?\s]+)(?:\?dimensions=([1-9]\d*))?", source)
        if form is None:
            raise InputError(
                f"an endpoint's model is written {PREFIX}MODEL or {PREFIX}MODEL?dimensions=N, got {source!r}"
            )
        self.source = source
        self._model = form[1]
        self._dimensions = int(form[2]) if form[2] else None
        self._base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")
        address = urllib.parse.urlsplit(self._base_url)
        # The address is written into routers, so it must not hold a password.
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc or address.query:
            raise InputError(
                "OPENAI_BASE_URL (or base_url) must look like http://HOST:PORT/v1, without user, password or query; "
                f"got one of scheme {address.scheme!r} and host {address.hostname!r}"
            )
        self.fingerprint = f"{source} at {self._base_url}"
        self.tokens_used = 0
        self._api_key = api_key
        self._width = width or self._dimensions
        self._price = dollars_per_million_tokens
        self._max_retries = max_retries
        self._timeout = timeout

    @property
    def spec(self) -> FeatureSpec:
        """What a router that is trained on the embeddings keeps.

        If neither an argument nor an answer has told the width yet, one word is sent to learn it.
        """
        if self._width is None:
            self.encode(["width"])
        width = cast(int, self._width)
        return FeatureSpec(kind="endpoint", source=self.source, width=width, fingerprint=self.fingerprint)

    def encode(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "prompts embed"]:
        """Embed prompts; equal prompts are sent once, and whole: nothing is truncated. The tokens used are logged.

        Args:
            prompts: texts. Blank ones are refused before anything is sent: endpoints do not agree on them.
            cache: looked up first and added to after each answer, so that nothing is paid for twice, whatever happens
                later. What is there needs neither key nor endpoint.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: a prompt that is not text, is blank, or that the endpoint refuses (mostly: too long); no key, or
                a wrong one; no such model; embeddings of another width; the package openai is missing.
            OSError: the endpoint does not answer, or not with embeddings, for all retries.
        """
        for row, prompt in enumerate(prompts):
            if isinstance(prompt, str) and not prompt.strip():
                raise InputError(f"row {row}: an endpoint cannot embed a blank prompt; drop it")
        used_before = self.tokens_used
        encode = functools.partial(self._encode_parts, prompts)
        try:
            embeddings = encode_once(prompts, encode, fingerprint=self.fingerprint, cache=cache, progress=progress)
        finally:
            self._log_cost(self.tokens_used - used_before)
        if not embeddings:
            return np.zeros((0, self.spec.width), np.float32)
        self._take_width(len(embeddings[0]))  # of the cache, where nothing was missing
        return np.stack(embeddings)

    def _encode_parts(
        self, prompts: Sequence[str], missing: dict[bytes, str]
    ) -> Iterator[dict[bytes, Float32[np.ndarray, "embed"]]]:
        """Yield the embeddings of ``missing``, those of one answer at a time; ``prompts`` only number the rows."""
        digests = list(missing)
        start, size = 0, PROMPTS_PER_REQUEST
        while start < len(digests):
            batch = digests[start : start + size]
            try:
                embedding = self._ask([valid_text(missing[digest]) for digest in batch])
            except _Refusal as refusal:
                if len(batch) > 1:
                    size = len(batch) // 2
                    continue
                prompt = missing[batch[0]]
                raise InputError(
                    f"row {list(prompts).index(prompt)}: {self.fingerprint} refuses this prompt of {len(prompt)} "
                    f"characters ({refusal}); if it is too long, shorten or drop it"
                ) from refusal
            self._take_width(embedding.shape[1])
            yield dict(zip(batch, embedding, strict=True))
            start += len(batch)

    def _take_width(self, width: int) -> None:
        if self._width is None:
            self._width = width
        if self._width != width:
            raise InputError(
                f"embeddings of {self.fingerprint} must be {self._width} wide, got {width}: another model is behind "
                "that name now"
            )

    def _ask(self, prompts: Sequence[str]) -> Float32[np.ndarray, "prompts embed"]:
        """One answer to one request, retried."""
        client = self._client
        import openai  # after the client, which says what to do where it is missing

        reason = ""
        for attempt in range(self._max_retries + 1):
            if attempt:
                time.sleep(min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS))
            try:
                # Raw, because the package does not check what it parses.
                response = client.embeddings.with_raw_response.create(
                    model=self._model,
                    input=list(prompts),
                    extra_body=None if self._dimensions is None else {"dimensions": self._dimensions},
                )
            except openai.APIStatusError as error:
                raise self._status_error(error) from error
            except openai.APIConnectionError as error:
                raise OSError(
                    f"{self._base_url} does not answer: {error} ({error.__cause__}), up to {self._max_retries} retries"
                ) from error
            try:
                answer = response.http_response.json()
                if not isinstance(answer, dict):
                    raise ValueError("no JSON object")
                self.tokens_used += _tokens(answer)
                return _read_embeddings(answer, len(prompts))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise OSError(
            f"{self._base_url} does not answer with one embedding for each prompt ({reason}), after "
            f"{self._max_retries} retries"
        )

    def _status_error(self, error: openai.APIStatusError) -> Exception:
        """What an answer other than 200 means here, once the package has given up on it."""
        status = error.status_code
        if status in REFUSED:
            return _Refusal(error.message)
        if status in (401, 403):
            return InputError(f"{self._base_url} does not accept the key: {error.message}; set OPENAI_API_KEY")
        if status == 404:
            return InputError(
                f"{self._base_url} has no embeddings of a model {self._model!r}: {error.message}; check the name, and "
                "OPENAI_BASE_URL, which mostly ends in /v1"
            )
        return OSError(f"{self._base_url} failed: {error.message}, up to {self._max_retries} retries")

    @functools.cached_property
    def _client(self) -> openai.OpenAI:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise InputError(
                f"embeddings of {self.source} need the package openai: pip install 'routerjax[openai]'"
            ) from error
        api_key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if not api_key:
            raise InputError(
                f"embeddings of {self.fingerprint} need a key: set OPENAI_API_KEY (to any text, where the endpoint "
                "asks for none)"
            )
        return openai.OpenAI(
            api_key=api_key, base_url=self._base_url, max_retries=self._max_retries, timeout=self._timeout
        )

    def _log_cost(self, tokens: int) -> None:
        if tokens:
            cost = "" if self._price is None else f", ${tokens * self._price / 1e6:.4f}"
            logger.info("%s: %d tokens used%s", self.fingerprint, tokens, cost)


class _Refusal(Exception):
    """The endpoint will not take these prompts together."""


def _tokens(answer: dict) -> int:
    """Those of ``usage``, which some servers leave out or half empty."""
    usage = answer.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


def _read_embeddings(answer: dict, count: int) -> Float32[np.ndarray, "prompts embed"]:
    """The embeddings of an answer, by ``index``, whether as numbers or as base64 of little-endian float32.

    Raises:
        ValueError, KeyError, TypeError: anything but ``count`` finite embeddings of one width.
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


def is_endpoint(source: str | os.PathLike[str]) -> bool:
    """Whether ``source`` names an endpoint's model (``openai:MODEL``), not an encoder's files."""
    return os.fspath(source).startswith(PREFIX)


def open_encoder(
    source: str | os.PathLike[str],
    *,
    max_length: int,
    truncation: Truncation | None = None,
    download: bool = True,
    width: int | None = None,
    dollars_per_million_tokens: float | None = None,
) -> SentenceEncoder | EndpointEncoder:
    """What reads text for ``source``: the one place that tells an endpoint (``openai:MODEL``) from an encoder's files.

    Args:
        source: see :class:`EndpointEncoder` and :func:`load_encoder`.
        max_length: tokens of a prompt that an encoder reads; an endpoint reads them all.
        truncation: what an encoder leaves out of a longer prompt; see :func:`load_encoder`.
        download: an encoder that is not here; see :func:`routerjax.pretrained.locate`.
        width: that an endpoint's embeddings must have.
        dollars_per_million_tokens: of an endpoint.

    Raises:
        InputError: as those two; or a truncation for an endpoint, which is sent whole prompts.
    """
    if is_endpoint(source):
        if truncation is not None:
            raise InputError(
                f"features.truncation={truncation!r} cannot be followed by {os.fspath(source)}, which is sent whole "
                "prompts: leave it out"
            )
        return EndpointEncoder(os.fspath(source), width=width, dollars_per_million_tokens=dollars_per_million_tokens)
    return load_encoder(source, max_length=max_length, truncation=truncation, download=download)


def routellm_features(width: int = 1536) -> FeatureSpec:
    """What RouteLLM's routers of embeddings read: OpenAI's text-embedding-3-small."""
    return EndpointEncoder("openai:text-embedding-3-small", base_url=OPENAI_URL, width=width).spec
