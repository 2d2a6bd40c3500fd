"""LiteLLM's own Router and proxy call what a router of routerjax chooses."""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from routerjax import InputError, Router, load_router
from routerjax.router import save_router
from tests.routers import tiny_router
from tests.serving.upstream import Upstream, fails, running_upstream

# Other packages warn of each other.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

PROMPTS = ("what is the capital of this country?", "prove that there are infinitely many primes", "write a poem", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("routers")
    router = tiny_router(path)
    median = sorted(router.win_prob(PROMPTS).tolist())[2]  # to be on either side of
    save_router(router.with_threshold(median), path / "router")
    return path / "router"


@pytest.fixture(scope="module")
def router(folder: Path) -> Router:
    return load_router(folder)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Upstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(endpoint: Upstream) -> Upstream:
    for requests in (endpoint.answers, endpoint.bodies, endpoint.headers):
        requests.clear()
    return endpoint


def deployment(group: str, model: str, upstream: Upstream) -> dict[str, Any]:
    settings = {"model": f"openai/{model}", "api_base": upstream.url, "api_key": "of nobody"}
    return {"model_name": group, "litellm_params": settings}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}]


def models(upstream: Upstream) -> list[str]:
    return [json.loads(body)["model"] for body in upstream.bodies]


def routed(folder: Path, upstream: Upstream, **options: Any) -> Any:
    import litellm

    from routerjax.plugins.litellm import RoutingStrategy

    groups = [("large", "large-1"), ("large", "large-2"), ("small", "small-1")]
    settings = {"num_retries": 0, "fallbacks": [{"router": ["small"]}], **options}
    made = litellm.Router(model_list=[deployment(*group, upstream) for group in groups], **settings)
    made.set_custom_routing_strategy(RoutingStrategy(made, folder, groups={"big": "large"}))
    return made


def test_the_strategy_chooses_the_group(folder: Path, router: Router, upstream: Upstream) -> None:
    made = routed(folder, upstream)
    strong, *_ = [prompt for prompt, model in zip(PROMPTS, router.route(PROMPTS), strict=True) if model == "big"]
    weak, *_ = [prompt for prompt, model in zip(PROMPTS, router.route(PROMPTS), strict=True) if model == "small"]
    for prompt in (strong, weak, strong):
        assert made.completion("router", user(prompt)).choices[0].message.content == "an answer"
    assert sorted(models(upstream)) == ["large-1", "large-2", "small-1"]  # a group's deployments take turns
    upstream.bodies.clear()

    async def ask() -> None:
        await made.acompletion("router", user(weak))
        await made.acompletion("router-0.0", user(weak))
        await made.acompletion("router-inf", user(strong))
        await made.acompletion("small", user(strong))
        stream = await made.acompletion("router", user(weak), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "".join(f"wörd{number} " for number in range(5))

    asyncio.run(ask())
    names = models(upstream)
    assert [name.removesuffix("-1").removesuffix("-2") for name in names] == [
        "small",
        "large",
        "small",
        "small",
        "small",
    ]


def test_the_strategy_leaves_retries_and_fallbacks_to_litellm(folder: Path, upstream: Upstream) -> None:
    import litellm

    made = routed(folder, upstream)
    upstream.answers.append(fails(500))
    answer = asyncio.run(made.acompletion("router", user("hi")))  # which is what fallbacks go by
    assert answer.choices[0].message.content == "an answer"
    assert models(upstream)[1] == "small-1"
    with pytest.raises(litellm.BadRequestError, match="no deployment has the model_name 'large-9'"):
        made.completion("large-9", user("hi"), fallbacks=[])
    with pytest.raises(litellm.BadRequestError, match="threshold must lie in"):
        made.completion("router-7", user("hi"), fallbacks=[])


def test_what_cannot_be_routed_is_refused_at_the_start(folder: Path, upstream: Upstream, tmp_path: Path) -> None:
    import litellm

    from routerjax.plugins.litellm import RoutingHook, RoutingStrategy

    made = litellm.Router(model_list=[deployment("small", "small-1", upstream)])
    with pytest.raises(InputError, match="no deployment in model_list has the model_name big: add one, or groups"):
        RoutingStrategy(made, folder)
    with pytest.raises(InputError, match="groups: 'medium' is none of the router's choices: big, small"):
        RoutingHook(folder, groups={"medium": "large"})
    save_router(load_router(folder).with_threshold(None), tmp_path / "router")
    with pytest.raises(InputError, match="this router has no threshold yet"):
        RoutingHook(tmp_path / "router")


@pytest.fixture(scope="module")
def proxy(folder: Path, endpoint: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """LiteLLM's proxy as a process, with the hook of docs/plugins.md."""
    place = tmp_path_factory.mktemp("proxy")
    (place / "routing.py").write_text(
        "from routerjax.plugins.litellm import RoutingHook\n\n"
        f"hook = RoutingHook({str(folder)!r}, groups={{'big': 'large'}})\n"
    )
    config = {
        "model_list": [deployment("large", "large-1", endpoint), deployment("small", "small-1", endpoint)],
        "litellm_settings": {"callbacks": ["routing.hook"]},
    }
    (place / "config.yaml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    key = f"sk-{secrets.token_hex(32)}"
    environment = {**os.environ, "LITELLM_MASTER_KEY": key}
    command = [Path(sys.executable).with_name("litellm"), "--config", place / "config.yaml", "--host", "127.0.0.1"]
    with open(place / "log.txt", "wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, cwd=place, env=environment)
    try:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            deadline = time.monotonic() + 180
            while True:
                try:
                    if client.get("/health/readiness").status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                assert process.poll() is None, (place / "log.txt").read_text()
                assert time.monotonic() < deadline, (place / "log.txt").read_text()
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def test_the_proxy_calls_what_the_hook_chooses(proxy: httpx2.Client, router: Router, upstream: Upstream) -> None:
    path, groups = "/v1/chat/completions", {"big": "large", "small": "small"}
    for prompt, win_prob, model in zip(PROMPTS, router.win_prob(PROMPTS), router.route(PROMPTS), strict=True):
        answer = proxy.post(path, json={"model": "router", "messages": user(prompt)})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-routerjax-model"] == groups[model]
        assert float(answer.headers["x-routerjax-win-prob"]) == pytest.approx(win_prob, abs=2e-6)
        assert float(answer.headers["x-routerjax-threshold"]) == pytest.approx(router.threshold, abs=1e-5)
        assert models(upstream)[-1] == f"{groups[model]}-1"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    body = {"model": "router-0.0", "messages": user("hi"), "tools": tools, "stream": True}
    with proxy.stream("POST", path, json=body) as stream:
        events = [line for line in stream.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    assert "wörd4" in "".join(events)
    sent = json.loads(upstream.bodies[-1])
    assert (sent["model"], sent["tools"]) == ("large-1", tools)
    forged = {"routerjax": {"model": "a\r\nb", "x\r\ny": 1}}
    named = proxy.post(path, json={"model": "small", "messages": user(PROMPTS[0]), "metadata": forged})
    assert named.status_code == 200
    assert models(upstream)[-1] == "small-1"
    assert "x-routerjax-model" not in named.headers


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "router-7", "messages": [{"role": "user", "content": "hi"}]}, "threshold must lie in"),
        ({"model": "router", "messages": []}, "messages must be a list of one or more"),
        ({"model": "router", "messages": ["hi"]}, "must be an object with role and content"),
    ],
)
def test_the_proxy_answers_what_cannot_be_routed_with_400(
    proxy: httpx2.Client, upstream: Upstream, fields: dict[str, Any], reason: str
) -> None:
    answer = proxy.post("/v1/chat/completions", json=fields)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]
    assert not upstream.bodies
