"""Configuration of the server: the upstream of each model, time limits, what answers in another's place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval
from pydantic import ConfigDict

from routerjax.config import Count, NonNegative, Positive
from routerjax.endpoints import require_address, require_key
from routerjax.errors import InputError, model_column, nearest
from routerjax.validation import from_json
from routerjax.yaml_text import read_yaml

ROUTER_MODEL = "router"
"""Name under which clients ask for the router's choice; ``router-0.7`` is a choice by that threshold."""

Scored = Literal["last", "user_turns", "all"]
"""Part of a conversation that is scored, see :mod:`routerjax.serving.conversation`."""

LARGEST_FILE = 2**20
# Name that is shown where the variable is not set: keys of vendors have small letters, and hyphens mostly.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
Retries = Annotated[int, Interval(ge=0, le=10)]


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Endpoint that answers for a model.

    Attributes:
        base_url: ``/chat/completions`` below it is asked.
        api_key_env: name of the environment variable with its key; None where it asks for none.
        model: its name for the model; default the name in this configuration.
        prompt_dollars, completion_dollars: price of a million tokens, for ``/metrics`` and the access log.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    base_url: str
    api_key_env: str | None = None
    model: str | None = None
    prompt_dollars: NonNegative = 0.0
    completion_dollars: NonNegative = 0.0

    def __post_init__(self) -> None:
        require_address(self.base_url, "base_url")

    @property
    def url(self) -> str:
        """Address of chat completions."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def key(self) -> str | None:
        """Key of the environment.

        Raises:
            InputError: the variable is not set, or what it holds cannot stand in a header.
        """
        return None if self.api_key_env is None else environment_key(self.api_key_env, "api_key_env")


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """Seconds that may be taken.

    Attributes:
        body: by a client, to send its request.
        decision: by the router, waiting for other requests included; then the server says that it is overloaded.
        connect: by an upstream, to be reached.
        first_token: by an upstream, to the first token of a stream.
        between_chunks: by an upstream, from one chunk of a stream to the next.
        answer: by an upstream, to a whole answer that is not streamed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    body: Positive = 60.0
    decision: Positive = 30.0
    connect: Positive = 5.0
    first_token: Positive = 60.0
    between_chunks: Positive = 60.0
    answer: Positive = 600.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of the server, as the YAML file has them.

    Attributes:
        models: upstreams by the names that clients and the router know; names that are none of the router's may be
            asked for as well.
        instead: models of the router without an upstream, and the model that answers where one of them is chosen.
        fallback: models that are tried, in this order, where the chosen one's upstream fails; default all others of
            the router with an upstream. A model that a client names itself has none.
        retries: of each upstream, before the fallback.
        longest_wait: seconds between two tries; an upstream that asks for more is not waited for.
        seconds: time limits.
        max_body_bytes: of a request.
        token_env: name of the environment variable with the bearer token that clients must send; None for none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    models: Mapping[str, Upstream]
    instead: Mapping[str, str] = field(default_factory=dict)
    fallback: tuple[str, ...] | None = None
    retries: Retries = 1
    longest_wait: NonNegative = 4.0
    seconds: TimeLimits = field(default_factory=TimeLimits)
    max_body_bytes: Count = 2**25
    token_env: str | None = None

    def __post_init__(self) -> None:
        for name in self.models:
            if not name or name.partition("-")[0] == ROUTER_MODEL:
                raise InputError(f"no model may be called {name!r}: clients ask for the router's choice by that name")
        for name in (*self.instead.values(), *(self.fallback or ())):
            model_column(name, tuple(self.models), "the configured")
        for name in self.instead:
            if name in self.models:
                raise InputError(
                    f"{name} has an upstream, and instead.{name} names another that answers: leave one out"
                )

    @property
    def token(self) -> str | None:
        """Bearer token that clients must send.

        Raises:
            InputError: as :attr:`Upstream.key`.
        """
        return None if self.token_env is None else environment_key(self.token_env, "token_env")

    def require_upstreams(self, models: tuple[str, ...], choices: Iterable[str]) -> None:
        """Refuse a configuration in which a model that the router may choose is answered by none.

        Args:
            models: of the router.
            choices: those among them that it may choose.

        Raises:
            InputError: names the models.
        """
        for name in self.instead:
            model_column(name, models, "the router's")
        missing = [name for name in choices if name not in self.models and name not in self.instead]
        if missing:
            listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise InputError(
                f"no upstream of {listed}: add models.NAME with its base_url, or instead.NAME: OTHER to have another "
                f"answer{''.join(nearest(name, self.models) for name in missing[:1])}"
            )

    def answering(self, model: str) -> str:
        """Name of the configured model that answers for one of the router's."""
        return model if model in self.models else self.instead[model]

    def order(self, model: str, choices: Iterable[str]) -> list[str]:
        """Configured models that are tried where the router chooses ``model``, the first of them its own."""
        others = [name for name in choices if name in self.models] if self.fallback is None else self.fallback
        return list(dict.fromkeys([self.answering(model), *others]))


def router_names(name: str) -> re.Pattern[str]:
    """Names by which clients ask for a router's choice: its own, and with ``-`` and a threshold behind it (group 1).

    Of bounded length, so that a long name takes no time, and no threshold becomes infinite.
    """
    return re.compile(re.escape(name) + r"(?:-(inf|[0-9]{0,20}\.?[0-9]{1,40}(?:[eE]-[0-9]{1,3})?))?")


def environment_key(variable: str, setting: str) -> str:
    """Read a secret from the environment.

    Raises:
        InputError: the variable is not set, or holds what cannot stand in a header; neither the secret is
            shown, nor a name that may be one.
    """
    value = os.environ.get(variable, "")
    if not value and not VARIABLE.fullmatch(variable):
        raise InputError(
            f"{setting} must be the name of an environment variable that is set, such as OPENAI_API_KEY; what it is "
            "set to is not shown, since it may be the key itself"
        )
    if not value:
        raise InputError(f"{setting}: the environment variable {variable} is not set")
    return require_key(value, f"{setting}: the environment variable {variable}")


def read_config(path: str | os.PathLike[str]) -> ServeConfig:
    """Read the server's YAML file.

    Raises:
        InputError: no such file, no YAML, keys that are unknown or there twice, or values of another type or out of
            range.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    content = path.read_bytes()
    if len(content) > LARGEST_FILE:
        raise InputError(f"{path} has {len(content)} bytes; a configuration has at most {LARGEST_FILE}")
    try:
        settings = read_yaml(content)
    except ValueError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    try:
        _require_mappings(settings)
        return from_json(settings, ServeConfig, "serve")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _require_mappings(settings: object) -> None:
    """Refuse models that are set to a text, which may be a key, without showing it."""
    models = settings.get("models") if isinstance(settings, dict) else None
    for name, upstream in models.items() if isinstance(models, dict) else [(None, models)]:
        if isinstance(upstream, str):
            where = "serve.models" if name is None else f"serve.models.{name}"
            raise InputError(f"{where} must be a mapping; its text is not shown, since it may hold a key")
