"""Tokens that upstreams count, and their price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from routerjax.serving.config import Upstream


class Usage(NamedTuple):
    """Tokens of a prompt and of its answer, as an upstream counts them."""

    prompt_tokens: int
    completion_tokens: int

    def dollars(self, upstream: Upstream) -> float:
        """Price, by that of a million tokens."""
        prompt, completion = upstream.prompt_dollars, upstream.completion_dollars
        return (self.prompt_tokens * prompt + self.completion_tokens * completion) / 1e6


def read_usage(answer: Mapping[str, Any]) -> Usage | None:
    """Read the usage of an answer, or of an event; None where it has none, which is of most events."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):
        return None
    counts = [usage.get(name) for name in Usage._fields]
    known = [count if isinstance(count, int) and 0 <= count < 2**53 else 0 for count in counts]
    return Usage(*known) if any(known) else None
