"""Upstreams that fail: retries, the other model, and errors in OpenAI's form; nothing hangs, and no key shows."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from starlette.responses import Response

from routerjax import Router
from routerjax.serving.answer_stream import AnswerStream
from routerjax.serving.config import ServeConfig
from routerjax.serving.config import Upstream as UpstreamConfig
from routerjax.serving.metrics import Metrics
from routerjax.serving.requests import read_chat_request
from routerjax.serving.upstreams import Answer, Upstreams
from tests.serving.servers import KEYS, Running, serving, settings
from tests.serving.upstream import DONE, END, STREAM, Upstream, chunk, fails, streams, whole

STRONG = "router-0"
BROKEN = ConnectionError()


def hangs(*parts: bytes) -> Callable:
    return streams(*parts, 5.0)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fails(500), "status_500"),
        (fails(503, "overloaded"), "status_503"),
        (fails(429, **{"Retry-After": "0"}), "status_429"),
        (lambda _: Response(b'{"choices": [', media_type="application/json"), "malformed"),
        (lambda _: Response(b"[]", media_type="application/json"), "malformed"),
        (lambda _: Response(b"{}", headers={"Content-Encoding": "br"}), "malformed"),
        (streams(STREAM[1], BROKEN), "broken"),
        (streams(STREAM[0], STREAM[1]), "broken"),
        (streams(STREAM[1], b'data: {"error": {"message": "overloaded"}}\n\n'), "broken"),
        (streams(STREAM[1], b"data: {nothing\n\n"), "malformed"),
        (streams(b"data: 3\n\n"), "malformed"),
        (streams(STREAM[1], b'data: {"choices": [{"index": 0, "delta": "text"}]}\n\n'), "malformed"),
        (streams(STREAM[1], b'data: {"choices": [{"index": [0], "delta": {}}]}\n\n'), "malformed"),
        (streams(STREAM[1], b'data: {"choices": 3}\n\n'), "malformed"),
        (fails(200, {"error": {"message": f"overloaded, {KEYS['BIG_KEY']}"}}), "broken"),
    ],
)
def test_a_failing_upstream_is_tried_again_and_then_the_other_model_answers(
    server: Running, big: Upstream, small: Upstream, fault: Callable, reason: str, is_stream: bool
) -> None:
    big.answers += [fault, fault]
    before = server.metric("upstream_failures_total", model="big", reason=reason)
    answer = server.chat(model=STRONG, stream=is_stream)
    assert answer.status_code == 200
    assert answer.content == (b"".join(STREAM) if is_stream else whole().body)
    assert answer.headers["x-routerjax-model"] == "small"
    assert answer.headers["x-routerjax-fallback"] == f"big: {reason}"
    assert len(big.bodies) == 2
    assert server.metric("upstream_failures_total", model="big", reason=reason) == before + 2
    big.answers.append(fault)  # where the next try is answered, nobody need know
    answer = server.chat(model=STRONG, stream=is_stream)
    assert answer.headers["x-routerjax-model"] == "big"
    assert "x-routerjax-fallback" not in answer.headers


@pytest.mark.parametrize("parts", [[], [STREAM[0], STREAM[1]]])
def test_an_upstream_that_hangs_before_its_first_token_is_not_waited_for(
    server: Running, big: Upstream, parts: list[bytes]
) -> None:
    big.answers += [hangs(*parts)] * 2
    start = time.monotonic()
    answer = server.chat(model=STRONG, stream=bool(parts))
    assert 2 < time.monotonic() - start < 4
    assert answer.content == (b"".join(STREAM) if parts else whole().body)
    assert answer.headers["x-routerjax-fallback"] == "big: timeout"


@pytest.mark.parametrize(
    ("fault", "tries"),
    [(fails(401), 1), (fails(404), 1), (fails(302, Location="/v1"), 1), (fails(429, **{"Retry-After": "60"}), 1)],
)
def test_what_another_try_does_not_help_is_not_tried_again(
    server: Running, big: Upstream, fault: Callable, tries: int
) -> None:
    big.answers.append(fault)
    answer = server.chat(model=STRONG)
    assert answer.headers["x-routerjax-model"] == "small"
    assert len(big.bodies) == tries


@pytest.mark.parametrize(
    ("parts", "passed"),
    [
        ([*STREAM[:4], BROKEN], STREAM[:4]),
        ([*STREAM[:4], STREAM[4][:20], BROKEN], STREAM[:4]),
        ([*STREAM[:4], 5.0], STREAM[:4]),
        (STREAM[:4], STREAM[:4]),
        ([*STREAM[:4], STREAM[4].rstrip()], STREAM[:4]),
        ([*STREAM[:4], b"data: {nothing\n\n", *STREAM[4:]], STREAM[:4]),
        ([STREAM[1], chunk("a", index=0), chunk("", index=1, finish_reason="stop")], None),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error(
    server: Running, big: Upstream, parts: list, passed: list[bytes] | None
) -> None:
    big.answers.append(streams(*parts))
    start = time.monotonic()
    answer = server.chat(model=STRONG, stream=True)
    assert time.monotonic() - start < 3
    content = b"".join(parts if passed is None else passed)
    assert answer.content.startswith(content)
    event = answer.content.removeprefix(content)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_stream_broken"
    assert server.record(answer)["error"] == "upstream_stream_broken"


@pytest.mark.parametrize(
    "parts",
    [
        [*STREAM[:-1]],  # some send no [DONE]
        [*STREAM[:-1], b"data: [DONE]"],  # and some no empty line after it
        [*STREAM[:3], b'data: {"error": {"message": "sorry"}}\n\n'],  # it says itself that it failed
        [STREAM[1], *[chunk("a", index=index) for index in (0, 1)], END, chunk("", index=1, finish_reason="stop")],
        [*STREAM, b": after the end\n\n", BROKEN],
    ],
)
def test_a_stream_that_is_whole_has_no_error_of_ours(server: Running, big: Upstream, parts: list) -> None:
    big.answers.append(streams(*parts))
    assert server.chat(model=STRONG, stream=True).content == b"".join(part for part in parts if part is not BROKEN)
    assert DONE in STREAM


class OpenEnd:
    """Response that leaves its connection open after the last event."""

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        for event in STREAM:
            yield event
        await asyncio.sleep(600)


def test_a_stream_ends_with_its_last_event() -> None:
    async def read() -> bytes:
        stream = AnswerStream(OpenEnd(), 600.0, None)  # pyright: ignore[reportArgumentType]
        async with asyncio.timeout(20):
            await stream.begin()
            return b"".join([content async for content in stream.events()])

    assert asyncio.run(read()) == b"".join(STREAM)


def test_all_retries_are_made_where_the_upstream_asks_for_no_longer_wait(big: Upstream) -> None:
    config = ServeConfig(models={"big": UpstreamConfig(base_url=big.url)}, retries=4, longest_wait=0.0)

    async def ask() -> Answer:
        upstreams = Upstreams(config, Metrics())
        try:
            return await upstreams.ask(["big"], read_chat_request(b'{"model": "big"}'), [])
        finally:
            await upstreams.close()

    big.answers += [fails(500)] * 4
    assert asyncio.run(ask()).content == whole().body
    assert len(big.bodies) == 5


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("fault", "status"), [(fails(500), 502), (fails(429, **{"Retry-After": "0.01"}), 429)])
def test_where_no_model_answers_the_error_has_openais_form(
    server: Running, big: Upstream, small: Upstream, fault: Callable, status: int, is_stream: bool
) -> None:
    big.answers += [fault] * 2
    small.answers += [fault] * 2
    answer = server.chat(model=STRONG, stream=is_stream)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "big" in answer.json()["error"]["message"]
    assert ("retry-after" in answer.headers) == (status == 429)
    assert [model for model, _ in server.record(answer)["failures"]] == ["big", "small"]
    big.answers += [fault] * 2  # a model that is named is answered by no other
    assert server.chat(model="big", stream=is_stream).status_code == status
    assert len(small.bodies) == 2


def test_a_model_that_hangs_and_has_no_other_is_an_error(server: Running, big: Upstream) -> None:
    big.answers += [hangs()] * 2
    answer = server.chat(model="big")
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


def test_a_clients_own_error_passes_without_the_key(server: Running, big: Upstream) -> None:
    error = {"error": {"message": f"bad request with {KEYS['BIG_KEY']}", "code": "context_length_exceeded"}}
    big.answers.append(fails(400, error, **{"X-Echo": KEYS["BIG_KEY"]}))
    answer = server.chat(model=STRONG)
    assert (answer.status_code, answer.headers["x-routerjax-model"]) == (400, "big")
    assert answer.json() == {"error": {"message": "bad request with [key]", "code": "context_length_exceeded"}}
    assert answer.headers["x-echo"] == "[key]"
    assert len(big.bodies) == 1
    event = b"data: " + json.dumps(error).encode() + b"\n\n"
    big.answers.append(streams(*STREAM[:4], event))
    assert KEYS["BIG_KEY"].encode() not in server.chat(model=STRONG, stream=True).content


def test_compressed_answers_are_read(server: Running, big: Upstream) -> None:
    content = whole().body
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    big.answers.append(lambda _: Response(gzip.compress(content), headers=headers))
    answer = server.chat(model=STRONG)
    assert answer.content == content
    assert "content-encoding" not in answer.headers


def test_no_key_shows_anywhere(
    small_router: Router, small: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    config = settings(Upstream(url=address), small)
    with serving(small_router, tmp_path, config) as started:
        answers = [started.chat(model=STRONG), started.chat(model="big"), started.client.get("/metrics")]
        small.answers += [fails(status, {"error": KEYS["SMALL_KEY"]}) for status in (401, 400, 500, 500)]
        answers += [started.chat(model="small") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 502, 200, 502, 400, 502]
        shown = [caplog.text, started.log.getvalue(), *(f"{answer.headers}{answer.text}" for answer in answers)]
    assert answers[0].headers["x-routerjax-fallback"] == "big: connect"
    assert not [text for text in shown for key in KEYS.values() if key in text]
