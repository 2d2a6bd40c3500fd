"""Identity of a prompt: routers and caches keep hashes, never the text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set, Sized
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt32

from routerjax.errors import InputError


def prompt_sha256(prompt: str) -> bytes:
    """SHA-256 of the prompt's UTF-8 bytes, 32 bytes.

    Lone surrogates (half of a broken emoji, as scraped text has them) are hashed by their code point, not refused.

    Example:
        >>> prompt_sha256("hello").hex()[:16]
        '2cf24dba5fb0a30e'
    """
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


def require_texts(prompts: Sequence[str]) -> None:
    """Refuse what is no sequence of texts, before any of it is read.

    Raises:
        InputError: one text; what has no order (a set), no length (a generator, which can be read once) or keys; or
            a row that is not text, which is named.
    """
    if isinstance(prompts, str):
        raise InputError("prompts must be a sequence of texts, got one text; write [prompt]")
    is_column = isinstance(prompts, Sized) and getattr(prompts, "ndim", 1) == 1
    if not is_column or isinstance(prompts, (bytes, Mapping, Set)):
        raise InputError(f"prompts must be a sequence of texts, such as a list, got {type(prompts).__name__}")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"row {row}: a prompt must be text, got {prompt!r}")


def prompt_ids(prompts: Sequence[str]) -> UInt32[np.ndarray, "prompts 2"]:
    """First 64 bits of each prompt's SHA-256 as two big-endian uint32, which JAX can hold without 64-bit mode.

    Two different prompts out of a million share an id with probability 3e-8.

    Example:
        >>> prompt_ids(["hello"])
        array([[ 754077114, 1605411598]], dtype=uint32)
    """
    digests = b"".join(prompt_sha256(prompt)[:8] for prompt in prompts)
    return np.frombuffer(digests, dtype=">u4").reshape(-1, 2).astype(np.uint32)


class Distinct(NamedTuple):
    """The different ones among prompts, in arrays alone: millions of prompts are no millions of Python objects.

    Attributes:
        is_first: True where a prompt appears for the first time.
        number: of each prompt among the different ones, which are numbered as they first appear.
        digest: first 128 bits of the SHA-256 of each different prompt.
    """

    is_first: Bool[np.ndarray, "prompts"]
    number: Int[np.ndarray, "prompts"]
    digest: UInt8[np.ndarray, "different 16"]


def distinct(prompts: Sequence[str]) -> Distinct:
    """Find the different ones among prompts, by the first 128 bits of their SHA-256.

    Example:
        >>> distinct(["b", "a", "b"]).number
        array([0, 1, 0])
    """
    content = bytearray()
    for prompt in prompts:
        content += prompt_sha256(prompt)[:16]
    digests = np.frombuffer(content, "V16")
    _, first, sorted_index = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number_of = np.empty_like(order)
    number_of[order] = np.arange(len(order))
    is_first = np.zeros(len(digests), bool)
    is_first[first] = True
    return Distinct(is_first, number_of[sorted_index], digests[is_first].view(np.uint8).reshape(-1, 16))


def valid_text(text: str) -> str:
    """The text with lone surrogates (half a broken emoji, as scraped JSON has them) as U+FFFD.

    What tokenizers and Arrow take is valid Unicode alone.

    Example:
        >>> valid_text("half \\ud83d") == "half \\ufffd"
        True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
