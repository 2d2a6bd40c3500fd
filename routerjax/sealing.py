"""JSON descriptions that carry the hash of their own content, so that a later change by hand is noticed.

The hash is no signature: who forges it on purpose can. It tells a description that routerjax wrote from one that was
edited, whose router would answer otherwise than it was trained, calibrated and compared to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from routerjax.errors import InputError

SEAL = "content_sha256"
"""The key of the hash; it is of all other keys."""


def seal(content: Mapping[str, object]) -> dict[str, object]:
    """Copy of a description with the SHA-256 of its canonical JSON: sorted keys, no white space, ASCII.

    Raises:
        InputError: what JSON cannot hold: NaN, infinity, or values of another type.

    Example:
        >>> seal({"strong": "big"})["content_sha256"][:8]
        '1710942b'
    """
    _canonical(content)
    plain = json.loads(json.dumps(content))  # as it will be read: names of keys are text, tuples are lists
    return {**plain, SEAL: _sha256(plain)}


def unseal(content: Mapping[str, Any], what: object, mend: str) -> dict[str, Any]:
    """The description without its hash.

    Args:
        content: as it was read.
        what: the file, as an error names it.
        mend: how the change is made rightly.

    Raises:
        InputError: it was changed after it was written, or never had a hash.
    """
    plain = {name: value for name, value in content.items() if name != SEAL}
    try:
        expected = _sha256(plain)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    if content.get(SEAL) != expected:
        raise InputError(f"{what} was changed after routerjax wrote it, so its answers may be others: {mend}")
    return plain


def _sha256(content: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(content).encode("ascii")).hexdigest()


def _canonical(content: Mapping[str, object]) -> str:
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a description must be JSON with finite numbers: {error}") from error
