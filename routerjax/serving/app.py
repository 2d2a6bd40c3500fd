"""ASGI application of the server: its routes, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TextIO

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.routing import Router as Routes
from starlette.types import ASGIApp, Receive, Scope, Send

from routerjax.serving.access_log import AccessLog, Record
from routerjax.serving.api_errors import ApiError
from routerjax.serving.chat import Chat
from routerjax.serving.config import ROUTER_MODEL, Scored, ServeConfig
from routerjax.serving.conversation import Conversations
from routerjax.serving.decisions import Decider
from routerjax.serving.guard import RECORD, Guard
from routerjax.serving.metrics import CONTENT_TYPE, Metrics
from routerjax.serving.page import page, status
from routerjax.serving.preferences import PreferenceLog
from routerjax.serving.text_scoring import TextScorer
from routerjax.serving.upstreams import Upstreams

logger = logging.getLogger(__name__)

# Prompts of one request to /route.
MOST_PROMPTS = 1024
OPEN_PATHS = ("/", "/health", "/ready")


class Server:
    """State of one server and the endpoints on it.

    Args:
        scorer: of a router with a policy that can choose.
        config: of the server.
        scored, strip: see :class:`routerjax.serving.conversation.Conversations`.
        access_log: stream of the access log; None for none.
        log_text: write the text that was scored to it.
        preferences: log of decisions and feedback; None for none.

    Attributes:
        app: ASGI application.
        metrics: of the server.
        on_failure: called where the router cannot be made ready.

    Raises:
        InputError: a model without an upstream, a key that is not set, a router without a threshold.
    """

    def __init__(
        self,
        scorer: TextScorer,
        config: ServeConfig,
        *,
        scored: Scored = "last",
        strip: Sequence[str] = (),
        access_log: TextIO | None = None,
        log_text: bool = False,
        preferences: PreferenceLog | None = None,
    ) -> None:
        config.require_upstreams(scorer.models, scorer.choices)
        self.metrics = Metrics()
        self._config, self._preferences = config, preferences
        self.on_failure: Callable[[], None] = lambda: None
        self._conversations = Conversations(scored, strip)
        self._upstreams = Upstreams(config, self.metrics)
        self._decider = Decider(scorer, config, self.metrics)
        chat = Chat(config, self._decider, self._conversations, self._upstreams, self.metrics, preferences)

        async def complete(request: Request) -> Response:
            return await chat(request, request.scope[RECORD])

        routes = [
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/route", self.route, methods=["POST"]),
            Route("/feedback", self.feedback, methods=["POST"]),
            Route("/", self.page),
            Route("/status", self.status),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.show_metrics),
        ]
        self.app: ASGIApp = Guard(
            _InApp(Routes(routes, redirect_slashes=False, lifespan=self.lifespan)),
            paths={route.path for route in routes},
            open_paths=OPEN_PATHS,
            token=config.token,
            max_body_bytes=config.max_body_bytes,
            body_seconds=config.seconds.body,
            metrics=self.metrics,
            log=AccessLog(access_log, with_text=log_text),
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: ASGIApp) -> AsyncIterator[None]:
        """Compile the router beside the first requests; close what is open at the end."""
        del app
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.wait({warming})
            await self._upstreams.close()
            self._decider.close()

    async def _warm_up(self) -> None:
        try:
            await self._decider.warm_up()
        except Exception as error:
            logger.error("the router cannot be made ready: %s: %s", type(error).__name__, error)
            self.on_failure()
        else:
            logger.info("the router is ready")

    async def models(self, request: Request) -> Response:
        """List the models that clients may ask for."""
        del request
        return JSONResponse({"object": "list", "data": [_model(name) for name in (ROUTER_MODEL, *self._config.models)]})

    async def model(self, request: Request) -> Response:
        """Describe one of them.

        Raises:
            ApiError: no such model.
        """
        name = request.path_params["model"]
        if name not in self._config.models:
            self._decider.threshold(name)
        return JSONResponse(_model(name))

    async def route(self, request: Request) -> Response:
        """Decide for a prompt, a conversation, or many prompts, and ask no model.

        Raises:
            ApiError: the body is none of these, or as :meth:`Decider.__call__`.
        """
        fields = await _json_object(request)
        names = [name for name in ("prompt", "prompts", "messages") if name in fields]
        if len(names) != 1:
            raise ApiError(400, "give one of prompt (text), prompts (a list of texts) and messages")
        (name,), value, model = names, fields[names[0]], fields.get("model", ROUTER_MODEL)
        threshold = self._decider.threshold(model if isinstance(model, str) else "")
        if name == "messages":
            texts = [self._conversations.text(value)]
        else:
            prompts = value if name == "prompts" else [value]
            if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
                raise ApiError(400, f"{name} must be {'a list of texts' if name == 'prompts' else 'text'}", param=name)
            if len(prompts) > MOST_PROMPTS:
                raise ApiError(400, f"prompts may be {MOST_PROMPTS} at a time, got {len(prompts)}", param=name)
            texts = [self._conversations.stripped(prompt) for prompt in prompts]
        decisions = await self._decider(texts, threshold)
        if name == "prompts":
            return JSONResponse({"decisions": [decision.described() for decision in decisions]})
        record: Record = request.scope[RECORD]
        decisions[0].note_in(record)
        record.text = texts[0]
        if self._preferences is not None:
            self._preferences.write_decision(record.request_id, texts[0], decisions[0], None)
        return JSONResponse(decisions[0].described())

    async def feedback(self, request: Request) -> Response:
        """Log which of two models answered a request better.

        Raises:
            ApiError: no log is kept, or as :meth:`PreferenceLog.write_feedback`.
        """
        fields = await _json_object(request)
        if self._preferences is None:
            raise ApiError(404, "this server logs no preferences: start it with --log-preferences", code="not_found")
        self._preferences.write_feedback(fields)
        return JSONResponse({"status": "recorded"})

    async def page(self, request: Request) -> Response:
        """Show the page; it asks for the token itself."""
        del request
        return page()

    async def status(self, request: Request) -> Response:
        """Describe the state of the server for its page."""
        del request
        decider = self._decider
        return JSONResponse(status(decider.scorer, self._config, self.metrics, is_ready=decider.is_ready))

    async def health(self, request: Request) -> Response:
        """Say that the process answers."""
        del request
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Say if decisions are made without compiling."""
        del request
        is_ready = self._decider.is_ready
        return JSONResponse({"status": "ready" if is_ready else "starting"}, 200 if is_ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Show the metrics in Prometheus' text format."""
        del request
        return Response(self.metrics.content(), media_type=CONTENT_TYPE)


class _InApp:
    """Application that has Starlette's router raise its errors, and not answer with text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._app(scope, receive, send)


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return fields


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "routerjax"}
