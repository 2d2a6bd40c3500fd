"""Errors that are no defects of routerjax: input that cannot be used, and an export that failed its check."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Entry = TypeVar("Entry")

# More names than these are counted, not listed.
MOST_LISTED = 10


class InputError(ValueError):
    """A user's input cannot be used: the message says what, what was expected, what came, and how to mend it.

    The command line prints it as one line and exits with status 2; everything else keeps its traceback,
    because everything else is a defect of ours.
    """


class RowError(InputError):
    """A row of the input cannot be used; whoever passed on a part of the rows names the row of the whole by :meth:`at`.

    Attributes:
        row: its number, from 0.
        reason: what follows the number in the message.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}{reason}")
        self.row, self.reason = row, reason

    def at(self, row: int) -> RowError:
        """Return the error with another number of the row."""
        return RowError(row, self.reason)


class VerificationError(RuntimeError):
    """An exported artefact does not reproduce the router's scores; it is kept beside its name, for inspection."""


class PreemptedError(KeyboardInterrupt):
    """The process was sent SIGTERM while it trained; the last finished step is saved, and the run can be resumed."""


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


def require_extra(extra: str, package: str, what: str) -> None:
    """Refuse what needs a package that only an extra of routerjax installs.

    Args:
        extra: as ``pyproject.toml`` names it.
        package: that it installs, as it is imported.
        what: needs it, as the subject of a sentence.

    Raises:
        InputError: the package is not installed.

    Example:
        >>> require_extra("report", "no_such_package", "a picture")
        Traceback (most recent call last):
        routerjax.errors.InputError: a picture needs no_such_package, which is missing: pip install 'routerjax[report]'
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs {package}, which is missing: pip install 'routerjax[{extra}]'")


def choose(name: object, known: Mapping[str, Entry], what: str) -> Entry:
    """Look up the entry of ``known`` that a user named.

    Args:
        name: as given; anything but text is no name.
        known: the names that there are, and what each stands for.
        what: is named, with its article: ``the loss``.

    Raises:
        InputError: no such name; lists those that there are and suggests the nearest.

    Example:
        >>> choose("bert", {"mf": 1, "bert": 2}, "the family")
        2
    """
    if not isinstance(name, str) or name not in known:
        close = nearest(str(name), known)
        raise InputError(f"{what} must be one of {', '.join(known)}, got {name!r}{close}")
    return known[name]


def model_column(name: str, models: Sequence[str], whose: str) -> int:
    """Return the index of a model among others.

    Args:
        name: of the model.
        models: all names; there may be dozens.
        whose: they are: ``the router's``.

    Raises:
        InputError: unknown; says how many there are, which if they are few, and the nearest.

    Example:
        >>> model_column("small", ["big", "small"], "the router's")
        1
    """
    if name not in models:
        listed = f": {', '.join(models)}" if len(models) <= MOST_LISTED else ""
        raise InputError(f"{name!r} is not one of {whose} {len(models)} models{nearest(str(name), models)}{listed}")
    return list(models).index(name)
