"""Things of one kind by name: those of this package, those that a script registers, and those of installed packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from routerjax.errors import InputError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A mapping of names that grows.

    A package adds an entry by an entry point of ``group`` in its own ``pyproject.toml``; it is imported when its name
    is first asked for, so that a router of it can be loaded by who has never heard of that package.

    Args:
        group: of entry points: ``routerjax.likelihoods``.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry; the same one again changes nothing.

        Raises:
            InputError: the name is taken by another.
        """
        if self._entries.setdefault(name, entry) is not entry:
            raise InputError(f"{self._group}: the name {name!r} is taken by {self._entries[name]!r}")

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            for point in importlib.metadata.entry_points(group=self._group, name=name):
                self._entries[name] = point.load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        installed = importlib.metadata.entry_points(group=self._group)
        return iter(dict.fromkeys([*self._entries, *(point.name for point in installed)]))

    def __len__(self) -> int:
        return len(list(iter(self)))
