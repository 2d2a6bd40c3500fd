"""A model's endpoint on this machine, which fails in the ways that it is told."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from routerjax.serving.run import uvicorn_settings

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chunk(text: str | None = None, **fields: object) -> bytes:
    """An event of a stream, spaced and ordered as no library would write it."""
    delta = {"role": "assistant"} if text is None else {"content": text}
    choice = {"delta": delta, "index": 0, "finish_reason": None, **fields}
    return (
        f"data:  {json.dumps({'unknown': {'z': 1.0, 'a': [1e3]}, 'choices': [choice]}, indent=None)}\r\n\r\n".encode()
    )


END = chunk("", finish_reason="stop")
DONE = b"data: [DONE]\n\n"
STREAM = [b": comment\n\n", chunk(), *(chunk(f"wörd{number} ") for number in range(5)), END, DONE]


@dataclass
class Upstream:
    """Endpoint that keeps what it was asked.

    Attributes:
        answers: of the next requests, each a function of the request; then :func:`answer`.
        bodies, headers: of requests.
        open: streams that are being sent; closed: those whose client went away.
    """

    answers: list[Callable[[Request], object]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open: int = 0
    closed: int = 0
    url: str = ""

    @property
    def app(self) -> ASGIApp:
        return Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))
        made = self.answers.pop(0) if self.answers else answer
        response = made(request)
        if asyncio.iscoroutine(response):
            response = await response
        if isinstance(response, list):
            response = StreamingResponse(self.counted(response), media_type="text/event-stream")
        elif response is None:
            fields = json.loads(self.bodies[-1])
            response = StreamingResponse(self.counted(STREAM), media_type="text/event-stream")
            if not fields.get("stream"):
                response = whole()
        assert isinstance(response, Response)
        return response

    async def counted(self, parts: list[object]) -> AsyncIterator[bytes]:
        """Parts of a stream: bytes, seconds to wait, or an error that breaks it off."""
        self.open += 1
        try:
            for part in parts:
                if isinstance(part, bytes):
                    yield part
                elif isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    raise ConnectionError
        except (asyncio.CancelledError, GeneratorExit):
            self.closed += 1
            raise
        finally:
            self.open -= 1


def answer(request: Request) -> object:
    """Stream, or whole answer, as is asked."""
    del request


def whole(text: str = "an answer", **headers: str) -> Response:
    content = {"id": "1", "choices": [{"index": 0, "message": {"content": text}}], "usage": USAGE, "other": 1.50}
    return Response(json.dumps(content, indent=3), 200, headers, "application/json")


def fails(status: int, content: object = None, **headers: str) -> Callable[[Request], Response]:
    return lambda _: JSONResponse({"error": {"message": "no"}} if content is None else content, status, headers)


def streams(*parts: object) -> Callable[[Request], object]:
    return lambda _: list(parts)


@contextlib.contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Address of a real server of an application, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn_settings(app, grace=5))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def running_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    with running(upstream.app) as address:
        upstream.url = f"{address}/v1"
        yield upstream
