"""Changes of JSON descriptions, each of which must be refused."""

from collections.abc import Iterator
from typing import Any


def changes(value: Any) -> Iterator[Any]:
    """Every copy of a JSON value with one change: another value of the same type in one place, or an entry less."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield {key: kept for key, kept in value.items() if key != name}
            yield from ({**value, name: changed} for changed in changes(item))
    elif isinstance(value, list):
        if value != value[::-1]:
            yield value[::-1]
        for place, item in enumerate(value):
            yield from ([*value[:place], changed, *value[place + 1 :]] for changed in changes(item))
    elif isinstance(value, bool):
        yield not value
    else:
        yield f"{value}x" if isinstance(value, str) else (value or 0) + 1
