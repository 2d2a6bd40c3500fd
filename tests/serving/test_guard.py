"""Surroundings of requests: token, limits, paths that there are not, what is logged and counted."""

import asyncio
import contextlib
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routerjax import InputError, Router
from routerjax.serving.access_log import AccessLog
from routerjax.serving.config import environment_key
from routerjax.serving.guard import Guard
from routerjax.serving.metrics import Metrics
from tests.serving.servers import LIMITS, Running, serving, settings
from tests.serving.upstream import Upstream, streams

TOKEN = "server-token-123"


def test_a_token_is_asked_for(
    small_router: Router, big: Upstream, small: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_TOKEN", f"{TOKEN}\n")
    with pytest.raises(InputError, match="SERVER_TOKEN begins or ends with white space"):
        environment_key("SERVER_TOKEN", "token_env")
    monkeypatch.setenv("SERVER_TOKEN", TOKEN)
    limits = {**LIMITS, "decision": 1e-4, "body": 0.5}
    config = settings(big, small, token_env="SERVER_TOKEN", max_body_bytes=300, seconds=limits)
    with serving(small_router, tmp_path, config) as started:
        for given in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer é"},
        ):
            headers = {name: value.encode("latin-1") for name, value in given.items()}
            for path in ("/v1/chat/completions", "/route", "/feedback"):
                answer = started.client.post(path, json={"model": "big"}, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            for path in ("/metrics", "/status", "/v1/models", "/nothing"):
                assert started.client.get(path, headers=headers).status_code == 401
        assert [started.client.get(path).status_code for path in ("/health", "/")] == [200, 200]
        assert not big.bodies
        started.client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert started.chat(model="big").status_code == 200
        late = started.chat()  # the router has no time to decide
        assert (late.status_code, late.json()["error"]["code"]) == (503, "overloaded")
        assert late.headers["retry-after"] == "1"
        assert TOKEN not in json.dumps(big.headers) + started.log.getvalue() + started.client.get("/metrics").text

        def parts():
            for _ in range(100):
                yield b" " * 100

        def slow_parts():
            yield b"{"
            time.sleep(1)
            yield b"}"

        slow = started.client.post("/v1/chat/completions", content=slow_parts())
        assert (slow.status_code, slow.json()["error"]["code"]) == (408, "body_too_slow")
        for content in (b" " * 301, parts()):
            answer = started.client.post("/v1/chat/completions", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
            assert started.record(answer)["error"] == "body_too_large"


def test_what_there_is_not(server: Running) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/nothing", 404),
    ):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
    answer = server.client.post("/v1/chat/completions", content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    answer = server.client.post("/feedback", json={"request_id": "a", "winner": "big"})
    assert (answer.status_code, "--log-preferences" in answer.text) == (404, True)


def test_decisions_without_an_answer(server: Running, small_router: Router, big: Upstream) -> None:
    prompts = [f"{word} capital of {'prove ' * length}" for length in range(30) for word in ("the", "")]
    win_prob = small_router.win_prob(prompts)
    threshold = float(np.median(win_prob))
    answer = server.client.post("/route", json={"prompts": prompts, "model": f"router-{threshold!r}"}).json()
    decisions = answer["decisions"]
    np.testing.assert_allclose([decision["win_prob"] for decision in decisions], win_prob, atol=1e-6)
    is_near = np.abs(win_prob - threshold) < 1e-6
    expected = np.asarray(small_router.with_threshold(threshold).route(prompts))
    models = np.asarray([decision["model"] for decision in decisions])
    assert (models == expected)[~is_near].all()
    assert server.client.post("/route", json={"prompts": []}).json() == {"decisions": []}
    single = server.client.post("/route", json={"prompt": prompts[3]}).json()
    talk = [{"role": "user", "content": "no"}, {"role": "user", "content": prompts[3]}]
    assert server.client.post("/route", json={"messages": talk}).json() == single
    assert single == {"model": single["model"], "win_prob": pytest.approx(win_prob[3], abs=1e-6), "threshold": 0.5}
    for body in ({}, {"prompt": 3}, {"prompts": "x"}, {"prompts": ["x", 3]}, {"prompt": "x", "prompts": []}, []):
        assert server.client.post("/route", json=body).status_code == 400
    assert server.client.post("/route", json={"prompts": ["x"] * 1025}).status_code == 400
    assert server.client.post("/route", json={"prompt": "x", "model": "big"}).status_code == 404
    assert not big.bodies


def test_concurrent_requests_are_scored_together_and_not_mixed_up(server: Running, small_router: Router) -> None:
    prompts = [f"{'prove ' * (row % 30)}{row}" for row in range(64)]
    before = server.metric("routing_batch_rows_count")
    start = threading.Barrier(16)

    def ask(part: int) -> list[float]:
        start.wait()
        answers = [server.client.post("/route", json={"prompt": prompts[row]}) for row in range(part, 64, 16)]
        return [answer.json()["win_prob"] for answer in answers]

    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(ask, range(16)))
    win_prob = [parts[row % 16][row // 16] for row in range(64)]
    np.testing.assert_allclose(win_prob, small_router.win_prob(prompts), atol=1e-6)
    assert server.metric("routing_batch_rows_count") - before < 64


def test_the_access_log_and_the_metrics_hold_no_prompt(server: Running, big: Upstream) -> None:
    secret = "a-secret-prompt"
    big.answers.append(streams(b"data: [DONE]\n\n"))
    answer = server.chat(secret, "router-0", stream=True)
    record = server.record(answer)
    assert {name: record[name] for name in ("method", "path", "status", "requested", "chosen", "model", "stream")} == {
        **{"method": "POST", "path": "/v1/chat/completions", "status": 200, "requested": "router-0"},
        **{"chosen": "big", "model": "big", "stream": True},
    }
    assert record["threshold"] == 0
    assert 0 < record["routing_seconds"] < record["seconds"]
    metrics = server.client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert secret not in server.log.getvalue() + metrics.text
    shown = re.search(r'routerjax_decisions_total\{by="threshold",model="big"\} (\S+)', metrics.text)
    assert shown
    assert float(shown[1]) == server.metric("decisions_total", model="big", by="threshold")


class Full(io.StringIO):
    """Stream of a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def answered(app: ASGIApp, stream: io.StringIO, seconds: float = 20.0) -> list[Message]:
    """Messages of a guarded application until it has answered, or is cancelled."""
    limits = {"open_paths": (), "token": None, "max_body_bytes": 100, "body_seconds": 9, "metrics": Metrics()}
    guard = Guard(app, paths=(), log=AccessLog(stream), **limits)  # pyright: ignore[reportArgumentType]
    scope, sent = {"type": "http", "method": "GET", "path": "/", "headers": []}, []
    received = [{"type": "http.request"}]

    async def receive() -> Message:
        return received.pop() if received else await asyncio.Event().wait()  # pyright: ignore[reportReturnType]

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(guard(scope, receive, send), seconds)

    asyncio.run(run())
    return sent


def test_an_access_log_that_cannot_be_written_is_no_fault_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    assert [message["type"] for message in answered(PlainTextResponse("x"), Full())] == [
        "http.response.start",
        "http.response.body",
    ]
    assert caplog.messages == ["a request is not in the access log: No space left on device"]


def test_the_access_log_says_what_ended_a_request_that_has_no_whole_answer() -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError

    for app, seconds, error in ((waits, 0.1, "cut_off"), (fails, 20.0, "internal_error")):
        log = io.StringIO()
        answered(app, log, seconds)
        assert json.loads(log.getvalue())["error"] == error
