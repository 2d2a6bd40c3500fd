"""Values of a stated type, from Python or from the text of a command line; pydantic checks them."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from annotated_types import Interval

from routerjax.errors import InputError, nearest

SCALARS = {int: "an integer", float: "a number", str: "text", bool: "True or False"}


def coerce(value: object, expected: object, name: str) -> Any:
    """Check a Python value against an annotation.

    A number of numpy becomes Python's, a path text, a list a tuple, and an integer a float where a float is expected;
    nothing else is converted: ``"5"`` is no integer, nor is ``5.0``. Numbers are finite.

    Args:
        value: to check.
        expected: ``int``, ``float``, ``str``, ``bool``, a ``Literal`` or a dataclass; ``tuple``, ``Mapping`` or union
            of them; ``Annotated`` with an :class:`annotated_types.Interval` of numbers.
        name: of the value, in errors.

    Returns:
        The value in that type.

    Raises:
        InputError: it is something else; one line.

    Example:
        >>> coerce(3, float, "optimizer.learning_rate")
        3.0
        >>> coerce(2.5, int, "training.epochs")
        Traceback (most recent call last):
        ...
        routerjax.errors.InputError: training.epochs must be an integer, got 2.5
    """
    plain = _plain(value, name)
    return _validated(lambda adapter: adapter.validate_python(plain, strict=True), value, expected, name)


def parse(text: str, expected: object, name: str) -> Any:
    """Read text, as a command line gives it, as a value of an annotation.

    What is text stays as it is, to the letter. ``None`` (or ``null``) is None where the annotation has it. Tuples,
    mappings and dataclasses are written as JSON or as Python literals.

    Args:
        text: to read.
        expected: see :func:`coerce`.
        name: of the value, in errors.

    Raises:
        InputError: it says something else; one line.

    Example:
        >>> parse("4.10", str, "router.strong"), parse("4.10", float, "optimizer.gradient_clip")
        ('4.10', 4.1)
        >>> parse('["winner"]', tuple[str, ...], "drop_where"), parse("None", float | None, "optimizer.gradient_clip")
        (('winner',), None)
    """
    _require_encodable(text, name)
    options = _options(expected)
    if type(None) in options and text in ("None", "null"):
        return None
    (kind,) = {_bare(option) for option in options} - {type(None)}
    if kind is str:
        return text
    is_integer = re.fullmatch(r"\s*[+-]?[0-9]+\s*", text)
    if (kind is int and not is_integer) or (kind is float and "_" in text):  # Python reads 2.0 and 2_000 here
        raise InputError(_refusal(text, expected, name))
    if kind in SCALARS or typing.get_origin(kind) is Literal:
        return _validated(lambda adapter: adapter.validate_strings(text), text, expected, name)
    try:
        written = json.dumps(_literal(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(_refusal(text, expected, name)) from error
    return _validated(lambda adapter: adapter.validate_json(written, strict=True), text, expected, name)


def from_json(value: object, expected: object, name: str) -> Any:
    """Check what was read of JSON against an annotation: an object is a dataclass or a mapping, an array a tuple.

    Raises:
        InputError: as :func:`coerce`.

    Example:
        >>> from_json([1, 2], tuple[int, ...], "columns")
        (1, 2)
    """
    try:
        written = json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # halves of a character among the former
        raise InputError(f"{name} is no JSON in UTF-8: {error}") from error
    return _validated(lambda adapter: adapter.validate_json(written, strict=True), value, expected, name)


def typed(attributes: Mapping[str, object], types: Mapping[str, object], whose: str) -> dict[str, Any]:
    """Attributes in the types of a module's fields: text is read by its type, all else must have it already.

    Raises:
        InputError: as :func:`coerce` and :func:`parse`, which call a value ``whose.name``.
    """
    checked = {}
    for name, value in attributes.items():
        what = f"{whose}.{name}"
        checked[name] = parse(value, types[name], what) if isinstance(value, str) else coerce(value, types[name], what)
    return checked


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Annotations of a dataclass's fields, bounds included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def item_type(expected: object) -> object:
    """Annotation of the items of a ``tuple[X, ...]``."""
    return typing.get_args(_bare(expected))[0]


def describe(expected: object) -> str:
    """Say in words what an annotation takes.

    Example:
        >>> describe(Annotated[float, Interval(ge=0, lt=1)]), describe(int | None), describe(tuple[str, ...])
        ('a number in [0, 1)', 'an integer or None', 'a tuple, each item text')
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return _bounded(describe(arguments[0]), *arguments[1:])
    if origin in (typing.Union, types.UnionType):
        *before, last = [describe(option) for option in arguments]
        return f"{', '.join(before)} or {last}"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a tuple, each item {describe(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names, each value {describe(arguments[1])}"
    if expected is type(None):
        return "None"
    if expected is object:
        return "of any kind"
    return SCALARS.get(typing.cast(type, expected)) or f"a {getattr(expected, '__name__', expected)}"


def _bounded(kind: str, bounds: Interval) -> str:
    low, high = (bounds.gt if bounds.ge is None else bounds.ge), (bounds.lt if bounds.le is None else bounds.le)
    if high is None:
        return kind.replace(" ", " positive ", 1) if bounds.gt == 0 else f"{kind} of at least {low}"
    return f"{kind} in {'(' if bounds.ge is None else '['}{low}, {high}{')' if bounds.le is None else ']'}"


def _options(expected: object) -> Sequence[object]:
    is_union = typing.get_origin(expected) in (typing.Union, types.UnionType)
    return typing.get_args(expected) if is_union else (expected,)


def _bare(expected: object) -> Any:
    """The annotation without its bounds."""
    return typing.get_args(expected)[0] if typing.get_origin(expected) is Annotated else expected


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def _plain(value: object, name: str) -> object:
    """Python's own kinds for those of numpy, for paths, and for lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        _require_encodable(value, name)
    if isinstance(value, list | tuple):
        return tuple(_plain(item, f"{name}.{index}") for index, item in enumerate(value))
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    return value


def _require_encodable(text: str, name: str) -> None:
    """Refuse what no path can hold, and what cannot be written down: a null character, halves of a character."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{name} must be text without null characters, in UTF-8, got {_shown(text)}")


@functools.cache
def _adapter(expected: Any) -> pydantic.TypeAdapter[Any]:
    # A dataclass brings a configuration of its own, and its own check of every field.
    config = None if dataclasses.is_dataclass(expected) else pydantic.ConfigDict(allow_inf_nan=False)
    return pydantic.TypeAdapter(typing.cast(Any, expected), config=config)


def _validated(validate: Callable[[pydantic.TypeAdapter[Any]], Any], value: object, expected: object, name: str) -> Any:
    try:
        return validate(_adapter(expected))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first.get("ctx", {}).get("error")
        if isinstance(reason, InputError):  # a dataclass's own check of itself
            raise reason from error
        raise InputError(_locate(first, value, expected, name)) from error


def _locate(error: Any, value: object, expected: object, name: str) -> str:
    """The message of pydantic's error: what was expected at that place of the value."""
    for key in error["loc"]:
        (kind, *_) = [option for option in map(_bare, _options(expected)) if option is not type(None)]
        if dataclasses.is_dataclass(kind):
            known = field_types(typing.cast(type, kind))
            if key not in known:
                close = nearest(str(key), known)
                return f"no setting '{name}.{key}': {typing.cast(type, kind).__name__} has {', '.join(known)}{close}"
            expected = known[key]
        elif typing.get_origin(kind) is tuple:
            expected = item_type(kind)
        elif typing.get_origin(kind) is not None and len(typing.get_args(kind)) == 2 and "[key]" not in error["loc"]:
            expected = typing.get_args(kind)[1]
        else:  # an option of a union of scalars
            break
        name, value = f"{name}.{key}", error["input"]
    if error["type"] == "missing":
        return f"{name} must be given: {describe(expected)}"
    return _refusal(value, expected, name)


def _refusal(value: object, expected: object, name: str) -> str:
    literals = [str(choice) for choice in typing.get_args(expected)] if typing.get_origin(expected) is Literal else []
    close = nearest(value, literals) if isinstance(value, str) else ""
    return f"{name} must be {describe(expected)}, got {_shown(value)}{close}"


def _shown(value: object) -> str:
    """Representation of a value, in one line of bounded length."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 80
    return " ".join(shown.repr(value).split())
