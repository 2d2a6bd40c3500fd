"""Report of the prompts that a tokenizer cut, and of those that it cannot tell apart."""

from __future__ import annotations

import collections
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from routerjax.features.cache import EmbeddingCache
from routerjax.features.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

LEFT_OUT = {"left": "the beginning", "right": "the end", "middle": "the middle"}


def _reading(token_ids: Int32[np.ndarray, "length"], is_cut: bool) -> bytes:
    """Summary of a prompt's tokens: if some were left out, and a hash that is equal where the others are."""
    return bytes([bool(is_cut)]) + hashlib.blake2b(np.asarray(token_ids, "<i4").tobytes(), digest_size=16).digest()


def read_prompts(
    tokenizer: TextTokenizer, prompts: Sequence[str], *, progress: bool = False
) -> list[Int32[np.ndarray, "length"]]:
    """Tokens of prompts; how many of the different ones were cut is logged."""
    token_ids, is_cut = tokenizer.read(prompts, progress=progress)
    readings = dict(zip(prompts, map(_reading, token_ids, is_cut), strict=True))
    report_cut(readings.values(), tokenizer)
    return token_ids


def read_once(
    tokenizer: TextTokenizer, prompts: Mapping[bytes, str], cache: EmbeddingCache | None, *, progress: bool
) -> dict[bytes, Int32[np.ndarray, "length"]]:
    """Tokens of those prompts of which the cache does not know how they are read; how many of all were cut is logged.

    Args:
        tokenizer: what reads them.
        prompts: texts by digest.
        cache: looked up first and added to.
        progress: show a progress bar, if it takes more than two seconds.
    """
    known = {} if cache is None else cache.read(tokenizer.fingerprint, list(prompts))
    missing = {digest: prompt for digest, prompt in prompts.items() if digest not in known}
    token_ids, is_cut = tokenizer.read(list(missing.values()), progress=progress)
    readings = dict(zip(missing, map(_reading, token_ids, is_cut), strict=True))
    if cache is not None and readings:
        cache.write(tokenizer.fingerprint, readings)
    report_cut([*known.values(), *readings.values()], tokenizer)
    return dict(zip(missing, token_ids, strict=True))


def report_cut(readings: Collection[bytes], tokenizer: TextTokenizer) -> None:
    """Log how many prompts were cut, and how many different ones became one and the same input.

    Args:
        readings: see :func:`_reading`; of different prompts, each once.
        tokenizer: what read them.
    """
    count = len(readings)
    cut = sum(reading[0] for reading in readings)
    hashes = collections.Counter(reading[1:] for reading in readings)
    alike = [number for number in hashes.values() if number > 1]
    inputs = "one and the same input" if len(alike) == 1 else f"only {len(alike)} different inputs"
    merged = f"{sum(alike)} different prompts became {inputs}" if alike else ""
    if cut:
        left_out = f"{LEFT_OUT[tokenizer.truncation]} of {'it' if cut == 1 else 'them'} was not read"
        logger.warning(
            "%d of %d prompt%s %s cut at %d tokens: %s%s",
            *(cut, count, "" if count == 1 else "s", "was" if cut == 1 else "were"),
            *(tokenizer.max_length, left_out, f"; {merged}" * bool(merged)),
        )
    elif merged:
        logger.info("%s, which the tokenizer does not tell apart", merged)
