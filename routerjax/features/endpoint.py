"""Embeddings from an OpenAI-compatible endpoint: whatever serves ``POST /v1/embeddings``."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from jaxtyping import Float32

from routerjax.config import Count
from routerjax.endpoints import require_address, require_key
from routerjax.errors import InputError, RowError
from routerjax.features.cache import EmbeddingByDigest, EmbeddingCache, embed
from routerjax.features.endpoint_connection import EndpointConnection, Refusal
from routerjax.features.featurizer import Featurizer, HostQuery, register_featurizer
from routerjax.prompts import require_texts, valid_text

logger = logging.getLogger(__name__)

PREFIX = "openai:"
OPENAI_URL = "https://api.openai.com/v1"
PROMPTS_PER_REQUEST = 256
# So many single prompts in a row that the server fails on, each for all retries, are no fault of theirs.
FAILURES_IN_A_ROW = 2
DEFAULT_TIME_LIMIT = 300.0


class EndpointEncoder:
    """Client of a model behind an endpoint. Making one asks for nothing yet.

    What did not arrive or was put off (429, 5xx, timeouts), or is not one finite embedding for each prompt, is asked
    for again, after the time that Retry-After names or a doubling one; each retry is logged. A request that is refused,
    or fails for good, is halved, down to the prompt that is to blame; the others of its part, of 2,048 prompts, are
    embedded before that one is named.
    So servers that take few prompts at a time need no setting.

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
        timeout: seconds that one request may take, from the name look-up to the answer's last byte.
        time_limit: seconds that one request may take with all its retries; default ``$ROUTERJAX_ENDPOINT_SECONDS``, or
            300.

    Attributes:
        source: as given.
        fingerprint: ``SOURCE at ADDRESS``: what embeddings made elsewhere by the same model should declare.
        tokens_used: that the endpoint has counted so far.

    Raises:
        InputError: another form of ``source``, ``base_url`` or time limit.
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
        time_limit: float | None = None,
    ) -> None:
        form = re.fullmatch(rf"{PREFIX}([^?\s]+)(?:\?dimensions=([1-9]\d*))?", source)
        if form is None:
            raise InputError(
                f"an endpoint's model is written {PREFIX}MODEL or {PREFIX}MODEL?dimensions=N, got {source!r}"
            )
        self.source = source
        self._model = form[1]
        self._dimensions = int(form[2]) if form[2] else None
        address = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self._base_url = require_address(address, "OPENAI_BASE_URL (or base_url)")
        self.fingerprint = f"{source} at {self._base_url}"
        self.tokens_used = 0
        self._api_key = api_key
        self._width = width or self._dimensions
        self._price = dollars_per_million_tokens
        self._max_retries = max_retries
        self._timeout = timeout
        self._time_limit = _default_time_limit() if time_limit is None else time_limit

    @property
    def featurizer(self) -> EndpointFeaturizer:
        """Featurizer of a router that is trained on the embeddings."""
        featurizer = EndpointFeaturizer(source=self.source, fingerprint=self.fingerprint, known_width=self._width)
        vars(featurizer)["encoder"] = self
        return featurizer

    @property
    def width(self) -> int:
        """Width of an embedding.

        If neither an argument nor an answer has told it yet, one word is sent to learn it.
        """
        if self._width is None:
            self.encode(["width"])
        return cast(int, self._width)

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
            InputError: a prompt that is not text, is blank, or that the endpoint refuses or fails on (mostly: too
                long), once the others of its part are embedded and in the cache; no key, or a wrong one; no such model;
                a redirect; embeddings of another width.
            OSError: the endpoint does not answer, or not with embeddings, for all retries or within the time limit.
        """
        require_not_blank(prompts)
        used_before = self.tokens_used
        encode = functools.partial(self._encode_parts, prompts)
        try:
            embedding = embed(prompts, encode, fingerprint=self.fingerprint, cache=cache, progress=progress)
        finally:
            self._log_cost(self.tokens_used - used_before)
        if not len(embedding):
            return np.zeros((0, self.width), np.float32)
        self._take_width(embedding.shape[1])  # of the cache, where nothing was missing
        return embedding

    def _encode_parts(
        self, prompts: Sequence[str], part: dict[bytes, str], missing: dict[bytes, str]
    ) -> Iterator[EmbeddingByDigest]:
        """Yield the embeddings of ``missing``, those of one answer at a time; ``prompts`` only number the rows."""
        del part
        if not missing:
            return
        digests = list(missing)
        batches = deque(
            digests[start : start + PROMPTS_PER_REQUEST] for start in range(0, len(digests), PROMPTS_PER_REQUEST)
        )
        failed: list[tuple[bytes, Refusal]] = []
        in_a_row = answers = 0
        with self._connect() as connection:
            while batches and in_a_row < FAILURES_IN_A_ROW:
                batch = batches.popleft()
                try:
                    embedding = self._embed(connection, [missing[digest] for digest in batch])
                except Refusal as refusal:
                    half = len(batch) // 2
                    if half:
                        batches.extendleft([batch[half:], batch[:half]])
                    else:
                        failed.append((batch[0], refusal))
                        in_a_row += refusal.is_servers
                    continue
                yield dict(zip(batch, embedding, strict=True))
                in_a_row, answers = 0, answers + 1
        if failed:
            is_down = failed[-1][1].is_servers and (in_a_row == FAILURES_IN_A_ROW or not answers)
            digest, refusal = failed[-in_a_row if is_down else 0]
            row, length = list(prompts).index(missing[digest]), len(missing[digest])
            if is_down:
                raise OSError(
                    f"{self._base_url} {refusal}; the first prompt without an answer is row {row} of {len(prompts)}, "
                    f"of {length} characters"
                )
            others = "" if len(failed) == 1 else f"; and so with {len(failed) - 1} others"
            raise RowError(
                row,
                f": {self.fingerprint} {'fails on' if refusal.is_servers else 'refuses'} this prompt of "
                f"{length} characters ({refusal}){others}; if it is too long, shorten or drop it",
            )

    def _embed(self, connection: EndpointConnection, prompts: Sequence[str]) -> Float32[np.ndarray, "prompts embed"]:
        body: dict[str, object] = {
            "model": self._model,
            "input": [valid_text(prompt) for prompt in prompts],
            "encoding_format": "base64",
        }
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        used_before = connection.tokens_used
        try:
            embedding = connection.ask(body, len(prompts))
        finally:
            self.tokens_used += connection.tokens_used - used_before
        self._take_width(embedding.shape[1])
        return embedding

    def _connect(self) -> EndpointConnection:
        key = self._api_key or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise InputError(
                f"embeddings of {self.fingerprint} need a key: set OPENAI_API_KEY (to any text, where the endpoint "
                "asks for none)"
            )
        return EndpointConnection(
            self._base_url,
            require_key(key, "OPENAI_API_KEY (or api_key)"),
            max_retries=self._max_retries,
            timeout=self._timeout,
            time_limit=self._time_limit,
        )

    def _take_width(self, width: int) -> None:
        if self._width is None:
            self._width = width
        if self._width != width:
            raise InputError(
                f"embeddings of {self.fingerprint} must be {self._width} wide, got {width}: another model is behind "
                "that name now"
            )

    def _log_cost(self, tokens: int) -> None:
        if tokens:
            cost = "" if self._price is None else f", ${tokens * self._price / 1e6:.4f}"
            logger.info("%s: %d tokens used%s", self.fingerprint, tokens, cost)


def _default_time_limit() -> float:
    text = os.environ.get("ROUTERJAX_ENDPOINT_SECONDS")
    try:
        seconds = DEFAULT_TIME_LIMIT if not text else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"ROUTERJAX_ENDPOINT_SECONDS must be a positive number of seconds, got {text!r}")
    return seconds


def require_not_blank(prompts: Sequence[str]) -> None:
    """Refuse prompts that are no texts or hold white space alone: endpoints do not agree on what that is.

    Raises:
        InputError: no sequence of texts, or a blank one; the row is named.
    """
    require_texts(prompts)
    for row, prompt in enumerate(prompts):
        if not prompt.strip():
            raise RowError(row, ": an endpoint cannot embed a blank prompt; drop it")


def is_endpoint(source: str | os.PathLike[str]) -> bool:
    """Tell if ``source`` names an endpoint's model (``openai:MODEL``), not an encoder's files."""
    return os.fspath(source).startswith(PREFIX)


@register_featurizer
@dataclass(frozen=True, kw_only=True)
class EndpointFeaturizer(Featurizer):
    """Featurizer that embeds text by an OpenAI-compatible endpoint; see :class:`EndpointEncoder`.

    Attributes:
        source: ``openai:`` and the model.
        fingerprint: model and address.
        known_width: of an embedding; None until the endpoint has told it.
    """

    kind = "endpoint"
    uses_cache = True

    source: str
    fingerprint: str
    known_width: Count | None = field(default=None, compare=False)  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] (an endpoint may have to be asked)
        """Width of an embedding; see :attr:`EndpointEncoder.width`."""
        return self.encoder.width if self.known_width is None else self.known_width

    @functools.cached_property
    def encoder(self) -> EndpointEncoder:
        """Client of the endpoint that the environment names.

        Raises:
            InputError: it has another address than that of the training.
        """
        encoder = EndpointEncoder(self.source, width=self.known_width)
        if encoder.fingerprint != self.fingerprint:
            refusal = self.refusal(f"the encoder {self.source} has", encoder.fingerprint)
            raise InputError(f"{refusal}; OPENAI_BASE_URL must be the address in it")
        return encoder

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON holds them."""
        return {**super().to_dict(), "known_width": self.width}

    def require_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse blank prompts."""
        require_not_blank(prompts)

    def require_text(self) -> None:
        """Compare the address; nothing is sent yet."""
        _ = self.encoder

    def query(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> HostQuery:
        """See :meth:`EndpointEncoder.encode`."""
        return {"embedding": self.encoder.encode(prompts, cache=cache, progress=progress)}


def routellm_features(width: int = 1536) -> EndpointFeaturizer:
    """Featurizer of RouteLLM's routers of embeddings: OpenAI's text-embedding-3-small."""
    source = "openai:text-embedding-3-small"
    return EndpointFeaturizer(source=source, fingerprint=f"{source} at {OPENAI_URL}", known_width=width)
