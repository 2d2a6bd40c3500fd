"""Report of the prompts that a tokenizer cut, and of those that it cannot tell apart."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import numpy as np
from jaxtyping import Int32

from routerjax.features.cache import PROMPTS_PER_PART, EmbeddingCache
from routerjax.features.tokenizer import TextTokenizer
from routerjax.prompts import prompt_sha256

logger = logging.getLogger(__name__)

LEFT_OUT = {"left": "the beginning", "right": "the end", "middle": "the middle"}

# A prompt and its tokens by 64 bits of a hash each: enough for a count of them, and small for millions of prompts.
READING = np.dtype([("prompt", "<u8"), ("is_cut", "?"), ("tokens", "<u8")])


class CutReport:
    """Report of how prompts were read, part by part, to be logged as one.

    Example:
        >>> report = CutReport()
        >>> with report.collecting():
        ...     pass  # whatever reads prompts here adds to it
        >>> report.log()
    """

    def __init__(self) -> None:
        self._readings: dict[str, list[np.ndarray]] = {}
        self._tokenizers: dict[str, TextTokenizer] = {}

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect what the body reads; within the body of another report, that one does."""
        token = _current.set(_current.get() or self)
        try:
            yield
        finally:
            _current.reset(token)

    def add(self, tokenizer: TextTokenizer, readings: Mapping[bytes, bytes]) -> None:
        """Add prompts, by digest, as :func:`_reading` sums them up."""
        content = b"".join(digest[:8] + reading[:9] for digest, reading in readings.items())
        self._tokenizers[tokenizer.fingerprint] = tokenizer
        self._readings.setdefault(tokenizer.fingerprint, []).append(np.frombuffer(content, READING))

    def log(self) -> None:
        """Log how many prompts were cut, and how many different ones became one and the same input."""
        for fingerprint, readings in self._readings.items():
            _log(np.concatenate(readings), self._tokenizers[fingerprint])


_current: ContextVar[CutReport | None] = ContextVar("cut_report", default=None)


def _add(tokenizer: TextTokenizer, readings: Mapping[bytes, bytes]) -> None:
    """Add to the report that collects, or log at once where none does."""
    collecting = _current.get()
    report = CutReport() if collecting is None else collecting
    report.add(tokenizer, readings)
    if collecting is None:
        report.log()


def _reading(token_ids: Int32[np.ndarray, "length"], is_cut: bool) -> bytes:
    """Summary of a prompt's tokens: if some were left out, and a hash that is equal where the others are."""
    return bytes([bool(is_cut)]) + hashlib.blake2b(np.asarray(token_ids, "<i4").tobytes(), digest_size=16).digest()


def read_prompts(
    tokenizer: TextTokenizer, prompts: Sequence[str], *, progress: bool = False
) -> Sequence[Int32[np.ndarray, "length"]]:
    """Tokens of prompts; how many of the different ones were cut is logged."""
    token_ids, is_cut = tokenizer.read(prompts, progress=progress)
    report, hashed, readings = CutReport(), map(prompt_sha256, prompts), map(_reading, token_ids, is_cut)
    with report.collecting():
        while part := dict(itertools.islice(zip(hashed, readings, strict=True), PROMPTS_PER_PART)):
            _add(tokenizer, part)
    report.log()
    return token_ids


def read_once(
    tokenizer: TextTokenizer, prompts: Mapping[bytes, str], cache: EmbeddingCache | None
) -> dict[bytes, Int32[np.ndarray, "length"]]:
    """Tokens of those prompts of which the cache does not know how they are read; how many of all were cut is logged.

    Args:
        tokenizer: what reads them.
        prompts: texts by digest.
        cache: looked up first and added to.
    """
    known = {} if cache is None else cache.read(tokenizer.fingerprint, list(prompts))
    missing = {digest: prompt for digest, prompt in prompts.items() if digest not in known}
    token_ids, is_cut = tokenizer.read(list(missing.values()))
    readings = dict(zip(missing, map(_reading, token_ids, is_cut), strict=True))
    if cache is not None and readings:
        cache.write(tokenizer.fingerprint, readings)
    _add(tokenizer, {**known, **readings})
    return dict(zip(missing, token_ids, strict=True))


def _log(readings: np.ndarray, tokenizer: TextTokenizer) -> None:
    readings = readings[np.unique(readings["prompt"], return_index=True)[1]]
    count, cut = len(readings), int(readings["is_cut"].sum())
    alike = np.unique(readings["tokens"], return_counts=True)[1]
    alike = alike[alike > 1]
    inputs = "one and the same input" if len(alike) == 1 else f"only {len(alike)} different inputs"
    merged = f"{sum(alike)} different prompts became {inputs}" if len(alike) else ""
    if cut:
        left_out = f"{LEFT_OUT[tokenizer.truncation]} of {'it' if cut == 1 else 'them'} was not read"
        logger.warning(
            "%d of %d prompt%s %s cut at %d tokens: %s%s",
            *(cut, count, "" if count == 1 else "s", "was" if cut == 1 else "were"),
            *(tokenizer.max_length, left_out, f"; {merged}" * bool(merged)),
        )
    elif merged:
        logger.info("%s, which the tokenizer does not tell apart", merged)
