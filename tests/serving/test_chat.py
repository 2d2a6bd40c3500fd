"""Chat completions through a real server: what passes, byte for byte, and who answers."""

import asyncio
import json
import threading

import httpx2
import numpy as np
import pytest
from starlette.responses import StreamingResponse

from routerjax import Router
from tests.serving.servers import KEYS, Running, wait_for
from tests.serving.upstream import STREAM, USAGE, Upstream, chunk, streams, whole

STRONG, WEAK = "router-0", "router-inf"


def test_everything_but_the_models_name_passes_byte_for_byte(server: Running, big: Upstream, small: Upstream) -> None:
    body = (
        b'{ "x_unknown": {"b":1.50, "a":[1e3,"\\u00e9\\ud83d"]},\n "model"\t:  "MODEL" , "n": 2,"logprobs":true,'
        b'"tools":[{"type":"function","function":{"name":"f"}}], "response_format":{"type":"json_object"},"seed":'
        b'123456789012345678901234567890, "messages" : [{"role":"user","content":[{"type":"text","text":"h\xc3\xa9"},'
        b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}\n '
    )
    for name, upstream, sent in ((STRONG, big, b"vendor/big"), (WEAK, small, b"small"), ("big", big, b"vendor/big")):
        answer = server.client.post("/v1/chat/completions", content=body.replace(b"MODEL", name.encode()))
        assert answer.status_code == 200
        assert upstream.bodies.pop() == body.replace(b"MODEL", sent)
        assert answer.content == whole().body
        assert answer.headers["content-type"] == "application/json"


def test_streams_pass_byte_for_byte_while_they_come(server: Running, big: Upstream) -> None:
    release = threading.Event()

    async def waits() -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)

    parts = [STREAM[0], STREAM[1] + STREAM[2][:9], STREAM[2][9:], *STREAM[3:]]

    async def sent():
        for place, part in enumerate(parts):
            if place == 4:
                await waits()
            yield part

    big.answers.append(lambda _: StreamingResponse(sent(), media_type="text/event-stream"))
    body = {"model": STRONG, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        pieces = []
        for piece in answer.iter_raw():
            pieces.append(piece)
            if b"".join(pieces) == b"".join(STREAM[:4]):  # these come before the upstream has the others
                release.set()
    assert b"".join(pieces) == b"".join(STREAM)


def test_who_answers_is_the_routers_decision(server: Running, small_router: Router, big: Upstream) -> None:
    prompts = ["what is the capital", "prove that there are primes", "write a poem", "", "日本語 " * 400]
    win_prob = small_router.win_prob(prompts)
    for threshold in (None, float(np.median(win_prob)), 0.0, 1.0):
        name = "router" if threshold is None else f"router-{threshold!r}"
        routed = small_router if threshold is None else small_router.with_threshold(threshold)
        for prompt, probability, model in zip(prompts, win_prob, routed.route(prompts), strict=True):
            answer = server.chat(prompt, name)
            assert answer.headers["x-routerjax-model"] == model
            assert float(answer.headers["x-routerjax-win-prob"]) == pytest.approx(probability, abs=2e-6)
            assert float(answer.headers["x-routerjax-threshold"]) == pytest.approx(routed.threshold, abs=1e-5)
            assert "x-routerjax-fallback" not in answer.headers


def test_a_model_that_is_named_passes_through(server: Running, small: Upstream) -> None:
    answer = server.chat(None, "small", messages="no conversation that a router reads")
    assert answer.status_code == 200
    assert answer.headers["x-routerjax-model"] == "small"
    assert "x-routerjax-win-prob" not in answer.headers
    assert json.loads(small.bodies[0])["model"] == "small"


WRONG = ["router-2", "router-x", "router-", "router--1", "router-nan", "router-1e400", f"router-{'9' * 400}"]


@pytest.mark.parametrize("name", ["gpt-9", "routers", *WRONG], ids=lambda name: name[:16])
def test_a_model_that_there_is_not(server: Running, name: str) -> None:
    answer = server.chat(model=name)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert answer.json()["error"]["param"] == "model"
    assert server.client.get(f"/v1/models/{name}").status_code == 404


def test_models_are_listed(server: Running) -> None:
    listed = server.client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["router", "big", "small"]
    assert server.client.get("/v1/models/big").json() in listed["data"]
    assert server.client.get("/v1/models/router-0.7").json()["id"] == "router-0.7"
    assert server.client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"nothing", b"[]", b'"model"', b"\xff", b'{"model": "router"', b'{"model": "router",}', b'{"model": 3}'),
        *(b'{"model": "router", "messages": []} {}', b'{"model": "big", "model": "small"}', b"{" * 100_000),
        *(b'{"model": "router"}', b'{"model": "router", "messages": ["hi"]}', b'{"messages": []}'),
        b'{"model": "router", "messages": [{"role": "user", "content": 5}]}',
    ],
)
def test_a_body_that_is_none(server: Running, big: Upstream, small: Upstream, body: bytes) -> None:
    answer = server.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not big.bodies + small.bodies


def test_keys_and_headers_of_one_side_are_not_the_others(server: Running, big: Upstream) -> None:
    big.answers.append(
        lambda _: whole(
            **{"Set-Cookie": "a=b", "X-Request-Id": "7", "Connection": "X-Hop", "X-Hop": "1", "Server": "s"}
        )
    )
    headers = {
        "Authorization": "Bearer client",
        "Cookie": "c=d",
        "X-Title": "kept",
        "Connection": "close, X-Gone",
        "Content-Type": "text/x",
    }
    body = {"model": STRONG, "messages": [{"role": "user", "content": "hi"}]}
    answer = server.client.post("/v1/chat/completions", json=body, headers={**headers, "X-Gone": "1", "api-key": "x"})
    assert answer.headers["x-request-id"] == "7"
    assert not {"set-cookie", "x-hop", "server"} & set(answer.headers)
    (sent,) = big.headers
    assert sent["authorization"] == f"Bearer {KEYS['BIG_KEY']}"
    assert (sent["x-title"], sent["content-type"]) == ("kept", "application/json")
    assert sent["accept-encoding"] == "identity"
    assert not {"cookie", "x-gone", "api-key"} & set(sent)
    assert server.chat(model=STRONG).status_code == 200
    assert "cookie" not in big.headers[1]


def test_a_client_that_goes_away_ends_the_request_upstream(server: Running, big: Upstream) -> None:
    before = server.metric("disconnects_total")
    big.answers.append(streams(*STREAM[:3], *[0.05, chunk("more")] * 400))
    body = {"model": STRONG, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()  # kept: one that nobody holds closes the connection when it is collected
        next(chunks)
        assert big.open == 1
    wait_for(lambda: big.closed == 1 and big.open == 0, 5)
    wait_for(lambda: server.metric("disconnects_total") == before + 1, 5)

    async def late(_: object) -> object:
        big.open += 1
        try:
            await asyncio.sleep(0.8)
        finally:
            big.open -= 1

    big.answers.append(late)
    patience = httpx2.Timeout(20, read=0.2)
    with pytest.raises(httpx2.ReadTimeout), httpx2.Client(base_url=server.address, timeout=patience) as impatient:
        impatient.post("/v1/chat/completions", json={**body, "stream": False})
    wait_for(lambda: server.metric("disconnects_total") == before + 2, 5)


def test_tokens_and_dollars_are_counted(server: Running, big: Upstream) -> None:
    before = [server.metric("dollars_total", model=model) for model in ("big", "small")]
    usage = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    big.answers.append(streams(*STREAM[:-1], usage, STREAM[-1]))
    server.chat(model=STRONG, stream=True)
    server.chat(model="small")
    after = [server.metric("dollars_total", model=model) for model in ("big", "small")]
    assert after[0] - before[0] == pytest.approx(7 * 10 / 1e6)
    assert after[1] - before[1] == pytest.approx(3 * 2 / 1e6)
