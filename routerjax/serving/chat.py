"""Chat completions: a decision, an upstream, and its answer passed on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routerjax.serving.access_log import Record
from routerjax.serving.answer_stream import AnswerStream
from routerjax.serving.api_errors import UPSTREAM, ApiError
from routerjax.serving.config import ServeConfig
from routerjax.serving.conversation import Conversations
from routerjax.serving.decisions import Decider, Decision
from routerjax.serving.headers import Headers, decision_headers, header_text
from routerjax.serving.metrics import Metrics
from routerjax.serving.preferences import PreferenceLog
from routerjax.serving.requests import ChatRequest, read_chat_request
from routerjax.serving.text_scoring import Choice
from routerjax.serving.upstreams import Answer, NoAnswerError, Upstreams
from routerjax.serving.usage import Usage

logger = logging.getLogger(__name__)


class Chat:
    """Answers requests for chat completions.

    Args:
        config: of the server.
        decider: of the router.
        conversations: reader of what is scored.
        upstreams: client of the models.
        metrics: where decisions, tokens and dollars are counted.
        preferences: log of decisions; None for none.
    """

    def __init__(
        self,
        config: ServeConfig,
        decider: Decider,
        conversations: Conversations,
        upstreams: Upstreams,
        metrics: Metrics,
        preferences: PreferenceLog | None,
    ) -> None:
        self._config, self._decider, self._conversations = config, decider, conversations
        self._upstreams, self._metrics, self._preferences = upstreams, metrics, preferences

    async def __call__(self, request: Request, record: Record) -> Response:
        """Answer one request.

        Raises:
            ApiError: no model answers it.
        """
        wanted = read_chat_request(await request.body())
        record.requested, record.stream = wanted.model[:200], wanted.streams
        models, decision = await self._models(wanted, record)
        try:
            answer = await self._upstreams.ask(models, wanted, request.headers.raw)
        except NoAnswerError as error:
            record.failures = [list(failure) for failure in error.failures]
            raise
        record.model, record.upstream_seconds = answer.model, answer.seconds
        record.failures = [list(failure) for failure in answer.failures]
        if decision is not None and self._preferences is not None:
            self._preferences.write_decision(record.request_id, record.text or "", decision, answer.model)
        headers = [*answer.headers, *routing_headers(decision, answer)]
        if answer.stream is None:
            self._count(answer.model, answer.usage, record)
            return PassedOn(answer, headers)
        return PassedOnStream(answer.status, headers, answer.stream, self._events(answer.model, answer.stream, record))

    async def _models(self, wanted: ChatRequest, record: Record) -> tuple[list[str], Decision | None]:
        """Models to ask, in their order, and the decision, if one was made."""
        if wanted.model in self._config.models:
            self._metrics.decisions.labels(wanted.model, "name").inc()
            return [wanted.model], None
        threshold = self._decider.threshold(wanted.model)
        record.text = text = self._conversations.text(wanted.fields.get("messages"))
        (decision,) = await self._decider([text], threshold)
        decision.note_in(record)
        return self._config.order(decision.choice.model, self._decider.scorer.choices), decision

    async def _events(self, model: str, stream: AnswerStream, record: Record) -> AsyncGenerator[bytes]:
        """Events of a stream; where it breaks, its last event is an error."""
        try:
            async for content in stream.events():
                yield content
        except Exception as error:  # whatever broke the stream: its client must not take it for whole
            reason = "timeout" if isinstance(error, TimeoutError) else "broken"
            self._metrics.upstream_failures.labels(model, reason).inc()
            record.error = "upstream_stream_broken"
            message = f"the upstream of {model} broke off its answer ({reason})"
            yield ApiError(502, message, UPSTREAM, code="upstream_stream_broken").event()
        finally:
            self._count(model, stream.usage, record)

    def _count(self, model: str, usage: Usage | None, record: Record) -> None:
        if usage is None:
            return
        dollars = usage.dollars(self._config.models[model])
        record.prompt_tokens, record.completion_tokens, record.dollars = *usage, dollars
        self._metrics.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._metrics.tokens.labels(model, "completion").inc(usage.completion_tokens)
        self._metrics.dollars.labels(model).inc(dollars)
        self._metrics.counted.labels(model).inc()


class PassedOn(Response):
    """Whole answer of an upstream, as it came."""

    def __init__(self, answer: Answer, headers: Headers) -> None:
        super().__init__(answer.content, answer.status)
        self.raw_headers = [*headers, (b"content-length", str(len(self.body)).encode())]


class PassedOnStream(Response):
    """Stream of an upstream, whose connection ends with that of the client."""

    def __init__(self, status: int, headers: Headers, stream: AnswerStream, events: AsyncGenerator[bytes]) -> None:
        super().__init__(None, status)
        self.raw_headers = headers
        self._stream, self._events = stream, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for content in events:
                    await send({"type": "http.response.body", "body": content, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._stream.close()


def routing_headers(decision: Decision | None, answer: Answer) -> Headers:
    """Headers that say which model answers, and why."""
    choice = Choice(answer.model, None, None) if decision is None else decision.choice
    headers = decision_headers(*choice._replace(model=answer.model))
    if answer.failures:
        failed = ", ".join(f"{failure.model}: {failure.reason}" for failure in answer.failures)
        headers.append((b"x-routerjax-fallback", header_text(failed)))
    return headers
