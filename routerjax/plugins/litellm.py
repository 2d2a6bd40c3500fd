"""Routers of routerjax in LiteLLM: a hook of its proxy, and a routing strategy of its ``Router``.

Both answer requests for the model ``router`` by the router's policy, and for ``router-0.7`` by that threshold: the
router's choice is the group of deployments that LiteLLM calls. Requests for any other group stay as they are.
"""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

from litellm.exceptions import BadRequestError  # pyright: ignore[reportMissingImports]
from litellm.integrations.custom_logger import CustomLogger  # pyright: ignore[reportMissingImports]
from litellm.types.router import CustomRoutingStrategyBase  # pyright: ignore[reportMissingImports]

from routerjax.errors import InputError
from routerjax.plugins.prompt_router import PromptRouter
from routerjax.serving.api_errors import ApiError
from routerjax.serving.config import ROUTER_MODEL, Scored, router_names
from routerjax.serving.conversation import Conversations
from routerjax.serving.headers import decision_headers
from routerjax.serving.text_scoring import Choice, ScorerOptions

METADATA = "routerjax"
"""Key of the decision in the metadata of a request, by which LiteLLM's logs and callbacks have it."""


class RouterGroups:
    """Router whose choices are groups of LiteLLM's deployments.

    Args:
        path: router folder, run or bundle, with a threshold or costs.
        name: model for which clients ask to be routed; with ``-`` and a number behind it, by that threshold.
        groups: LiteLLM's ``model_name`` for each model of the router that has another name there.
        scored: ``last`` user turn, ``user_turns``, or ``all`` turns of a conversation.
        strip: regular expressions in RE2's syntax; what they match is not scored (google-re2, of the extra `serve`).
        options: see :class:`routerjax.serving.text_scoring.ScorerOptions`.

    Attributes:
        choices: groups among which the router chooses.

    Raises:
        InputError: no router there, one without a threshold, or names that are none of its models'.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = ROUTER_MODEL,
        groups: Mapping[str, str] | None = None,
        scored: Scored = "last",
        strip: Sequence[str] = (),
        **options: Unpack[ScorerOptions],
    ) -> None:
        self._router = PromptRouter(path, **options)
        self._router.require_policy()
        self._conversations = Conversations(scored, strip)
        self._name = router_names(name)
        self._groups = dict(groups or {})
        unknown = sorted({*self._groups} - {*self._router.choices})
        if unknown:
            raise InputError(
                f"groups: {unknown[0]!r} is none of the router's choices: {', '.join(self._router.choices)}"
            )
        self.choices = tuple(map(self._group, self._router.choices))

    def is_asked(self, model: object) -> bool:
        """True for the models that the router answers for."""
        return isinstance(model, str) and self._name.fullmatch(model) is not None

    def choose(self, model: str, request: Mapping[str, Any]) -> Choice:
        """Choose a group for a request.

        Args:
            model: that is asked for, see :meth:`is_asked`.
            request: with ``messages``, ``input`` or ``prompt``.

        Raises:
            litellm.BadRequestError: a request that cannot be routed.
        """
        try:
            return self._named(self._router.choose(*self._question(model, request)))
        except (ApiError, InputError) as error:
            raise _refusal(error, model) from error

    async def achoose(self, model: str, request: Mapping[str, Any]) -> Choice:
        """Do what :meth:`choose` does, beside an event loop."""
        try:
            return self._named(await self._router.achoose(*self._question(model, request)))
        except (ApiError, InputError) as error:
            raise _refusal(error, model) from error

    def _question(self, model: str, request: Mapping[str, Any]) -> tuple[str, float | None]:
        """Text that is scored, and the threshold that is asked for."""
        match = self._name.fullmatch(model)
        threshold = None if match is None or match[1] is None else float(match[1])
        given = (request.get(field) for field in ("messages", "input", "prompt"))
        content = next((value for value in given if value is not None), None)
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        return self._conversations.text(messages), threshold

    def _group(self, model: str) -> str:
        return self._groups.get(model, model)

    def _named(self, choice: Choice) -> Choice:
        return choice._replace(model=self._group(choice.model))


class RoutingHook(CustomLogger):
    """Hook of LiteLLM's proxy that puts the router's choice in the place of the model that a client asks for.

    LiteLLM balances, retries and falls back among the deployments of that group as it does for any other. The answer
    has the headers ``x-routerjax-model``, ``x-routerjax-win-prob`` and ``x-routerjax-threshold``, as that of
    ``routerjax serve``, and the request's metadata has them under ``routerjax``.

    Args:
        path: router folder, run or bundle.
        options: see :class:`RouterGroups`.

    Raises:
        InputError: as :class:`RouterGroups`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__()
        self._groups = RouterGroups(path, **options)

    async def async_pre_call_hook(
        self, user_api_key_dict: object, cache: object, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Route a request, whatever it is of (chat, text or responses).

        Raises:
            litellm.BadRequestError: see :meth:`RouterGroups.choose`.
        """
        del user_api_key_dict, cache, call_type
        model, metadata = data.get("model"), dict(data.get("metadata") or {})
        is_forged = metadata.pop(METADATA, None) is not None  # a client has no say in what the headers tell
        if not self._groups.is_asked(model):
            return {**data, "metadata": metadata} if is_forged else data
        choice = await self._groups.achoose(str(model), data)
        return {**data, "model": choice.model, "metadata": {**metadata, METADATA: choice._asdict()}}

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: object,
        response: object,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, object] | None = None,
    ) -> dict[str, str] | None:
        """Headers of the answer."""
        del user_api_key_dict, response, request_headers, litellm_call_info
        choice = (data.get("metadata") or {}).get(METADATA)
        if not isinstance(choice, dict):
            return None
        return {name.decode(): value.decode() for name, value in decision_headers(**choice)}


class RoutingStrategy(CustomRoutingStrategyBase):
    """Strategy of LiteLLM's ``Router``: the router chooses the group, and its deployments are called in turn.

    A strategy of one's own takes the place of all of LiteLLM's: deployments that cool down are called as others are.
    Retries and fallbacks stay, the latter by the name that was asked for.

    Args:
        litellm_router: whose strategy it becomes, by ``litellm_router.set_custom_routing_strategy(strategy)``.
        path: router folder, run or bundle.
        options: see :class:`RouterGroups`.

    Raises:
        InputError: as :class:`RouterGroups`, or a group of the router's choices without a deployment.
    """

    def __init__(self, litellm_router: Any, path: str | os.PathLike[str], **options: Any) -> None:
        self._litellm_router = litellm_router
        self._turns: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
        self._groups = RouterGroups(path, **options)
        missing = [group for group in self._groups.choices if not self._deployments(group)]
        if missing:
            raise InputError(f"no deployment in model_list has the model_name {', '.join(missing)}: add one, or groups")

    def get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[object] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return a deployment of the group that is chosen, or of that which is asked for.

        Raises:
            litellm.BadRequestError: see :meth:`RouterGroups.choose`, or a group without a deployment.
        """
        del specific_deployment, request_kwargs
        if self._groups.is_asked(model):
            model = self._groups.choose(model, {"messages": messages, "input": input}).model
        return self._next(model)

    async def async_get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[object] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Do what :meth:`get_available_deployment` does, beside an event loop."""
        del specific_deployment, request_kwargs
        if self._groups.is_asked(model):
            model = (await self._groups.achoose(model, {"messages": messages, "input": input})).model
        return self._next(model)

    def _next(self, group: str) -> Any:
        deployments = self._deployments(group)
        if not deployments:
            raise BadRequestError(f"no deployment has the model_name {group!r}", group, "routerjax")
        return deployments[next(self._turns[group]) % len(deployments)]

    def _deployments(self, group: str) -> Sequence[Any]:
        if hasattr(self._litellm_router, "registry"):  # from LiteLLM 1.110 on
            return self._litellm_router.registry().deployments(group)
        return self._litellm_router.get_model_list(model_name=group) or ()


def _refusal(error: ApiError | InputError, model: str) -> Exception:
    return BadRequestError(f"{model}: {error}", model, "routerjax")
