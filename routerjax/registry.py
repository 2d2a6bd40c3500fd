"""Things of one kind by name: those of this package, those that a script registers, and those of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from routerjax.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

Entry = TypeVar("Entry")
RegisteredT = TypeVar("RegisteredT")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A mapping of names that grows.

    A package adds an entry by an entry point of ``group`` in its own ``pyproject.toml``; it is imported when its name
    is first asked for, so that a router of it can be loaded by who has never heard of that package.

    Args:
        group: of entry points: ``routerjax.likelihoods``.
        built_in: entries of this package that are likewise imported when asked for: name -> ``module:attribute``.
        key: attribute of an entry that holds its name.
    """

    def __init__(self, group: str, built_in: Mapping[str, str] = MappingProxyType({}), *, key: str = "name") -> None:
        self._group = group
        self._built_in = built_in
        self._key = key
        self._entries: dict[str, Entry] = {}

    def register(self, entry: RegisteredT) -> RegisteredT:
        """Add an entry by its own name, so that a router that uses it can be loaded; a decorator of classes.

        The same entry again changes nothing.

        Raises:
            InputError: the name is taken by another.
        """
        name, added = getattr(entry, self._key), cast(Entry, entry)
        known = self[name] if name in self._built_in else self._entries.setdefault(name, added)
        if known is not added:
            raise InputError(f"{self._group}: the name {name!r} is taken by {known!r}")
        return entry

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            if name in self._built_in:
                module, _, attribute = self._built_in[name].partition(":")
                self._entries[name] = getattr(importlib.import_module(module), attribute)
            else:
                for point in self._installed().select(name=name):
                    try:
                        self._entries.setdefault(name, point.load())
                    except Exception as error:  # of another package's code: anything
                        what = f"{type(error).__name__}: {error}".splitlines()[0]
                        raise InputError(
                            f"{self._group}: the entry point {name} = {point.value} of an installed package cannot be "
                            f"imported: {what}"
                        ) from error
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        installed = (point.name for point in self._installed())
        return iter(dict.fromkeys([*self._built_in, *self._entries, *installed]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _installed(self) -> EntryPoints:
        import importlib.metadata  # which takes as long as all else that the command line's --help does

        return importlib.metadata.entry_points(group=self._group)
