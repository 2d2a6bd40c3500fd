"""Keys are taken out of what upstreams say: some repeat them in their errors."""

from __future__ import annotations

import json
import urllib.parse

# A shorter key is no secret ("x", where a server asks for none), and stands in many words.
SHORTEST_SECRET = 4


def without_key(content: bytes, key: str | None) -> bytes:
    """Content with ``[key]`` in the place of a key, in any form in which it may be written.

    Example:
        >>> without_key(b"Incorrect API key: sk-1234", "sk-1234")
        b'Incorrect API key: [key]'
    """
    if key is None or len(key) < SHORTEST_SECRET:
        return content
    forms = {key, urllib.parse.quote(key), urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1]}
    for form in sorted(forms, key=len, reverse=True):
        content = content.replace(form.encode(), b"[key]")
    return content
