"""What is not a defect of ours: input that cannot be used, and an export that failed its check."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A user's input cannot be used: the message says what, what was expected, what came, and how to mend it.

    The command line prints it as one line and exits with status 2; everything else keeps its traceback,
    because everything else is a defect of ours.
    """


class VerificationError(RuntimeError):
    """What was written does not do what the router does; it is kept beside its name, for a look at it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string.

    Example:
        >>> nearest("gpt4", ["gpt-4", "claude"])
        " (did you mean 'gpt-4'?)"
    """
    known = list(known)
    # Case differs more often than letters do, so compare without it.
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    return f" (did you mean '{lowered[close[0]]}'?)" if close else ""
