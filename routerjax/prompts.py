"""Identity of a prompt: routers and caches keep hashes, never the text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set, Sized

import numpy as np
from jaxtyping import UInt32

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


def valid_text(text: str) -> str:
    """The text with lone surrogates (half a broken emoji, as scraped JSON has them) as U+FFFD.

    What tokenizers and Arrow take is valid Unicode alone.

    Example:
        >>> valid_text("half \\ud83d") == "half \\ufffd"
        True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
