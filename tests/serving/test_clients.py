"""OpenAI's own client and LangChain's, against the server as a process."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from routerjax import Router
from routerjax.router import save_router
from tests.serving.servers import settings, wait_for
from tests.serving.upstream import Upstream, fails

# Other packages warn of each other.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

PROMPT = "what is the capital of this country"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ARGUMENTS = ['{"ci', 'ty": "Ly', 'on"}']
WORDS = [f"word{number} " for number in range(40)]


class City(pydantic.BaseModel):
    """City that is asked for."""

    city: str


def model_answer(request: Request) -> object:
    """Answer as OpenAI's endpoint does, by a call of the tool where one is given."""

    async def made() -> JSONResponse | StreamingResponse:
        fields = json.loads(await request.body())
        call = {"index": 0, "id": "call-1", "type": "function"}
        named = {"id": "chatcmpl-1", "created": 1, "model": fields["model"]}
        if fields.get("stream"):
            deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS)]
            if fields.get("tools"):
                parts = [{"name": "weather", "arguments": ""}, *({"arguments": part} for part in ARGUMENTS)]
                deltas = [{"role": "assistant"}, *({"tool_calls": [{**call, "function": part}]} for part in parts)]
            events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            lines = [
                f"data: {json.dumps({**named, 'object': 'chat.completion.chunk', **event})}\n\n" for event in events
            ]
            return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")
        message = {"role": "assistant", "content": "Paris"}
        if fields.get("tools"):
            function = {"name": "weather", "arguments": "".join(ARGUMENTS)}
            message = {"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]}
        elif fields.get("response_format"):
            message["content"] = '{"city": "Paris"}'
        choices = [{"index": row, "message": message, "finish_reason": "stop"} for row in range(fields.get("n") or 1)]
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return JSONResponse({**named, "object": "chat.completion", "choices": choices, "usage": usage})

    return made()


@pytest.fixture(scope="module")
def address(
    small_router: Router, _upstreams: tuple[Upstream, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clients")
    save_router(small_router, folder / "router")
    (folder / "serve.yaml").write_text(json.dumps(settings(*_upstreams, token_env="SERVER_TOKEN")))
    command = [sys.executable, "-m", "routerjax.cli", "serve", "router", "--config", "serve.yaml", "--port", "0"]
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    with open(folder / "log.txt", "wb") as log:
        environment = {**os.environ, "PYTHONPATH": path, "SERVER_TOKEN": "t"}
        process = subprocess.Popen([*command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    try:
        wait_for(lambda: "the router is ready" in (folder / "log.txt").read_text() or process.poll() is not None)
        (started,) = re.findall(r"listening on (http://127\.0\.0\.1:\d+)\n", (folder / "log.txt").read_text())
        yield f"{started}/v1"
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(autouse=True)
def answering(big: Upstream, small: Upstream) -> None:
    for upstream in (big, small):
        upstream.answers.extend([model_answer] * 100)


def fields_of(upstreams: tuple[Upstream, ...]) -> list[dict]:
    return [json.loads(body) for upstream in upstreams for body in upstream.bodies]


def test_openais_client(address: str, small_router: Router, big: Upstream, small: Upstream) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="t", max_retries=0)
    messages = [{"role": "user", "content": PROMPT}]
    raw = client.chat.completions.with_raw_response.create(
        model="router", messages=messages, n=2, seed=3, logit_bias={"5": -1}
    )
    (model,) = small_router.route([PROMPT])
    assert raw.headers["x-routerjax-model"] == model
    answer = raw.parse()
    assert [choice.message.content for choice in answer.choices] == ["Paris", "Paris"]
    assert answer.usage.total_tokens == 10
    (sent,) = fields_of((big, small))
    assert (sent["n"], sent["seed"], sent["logit_bias"]) == (2, 3, {"5": -1})
    assert sent["model"] == {"big": "vendor/big", "small": "small"}[model]

    answered = client.chat.completions.create(model="router-0", messages=messages, tools=[TOOL], tool_choice="auto")
    (call,) = answered.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Lyon"})
    assert json.loads(big.bodies[-1])["tools"] == [TOOL]
    parsed = client.chat.completions.parse(model="router-inf", messages=messages, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Paris")

    assert [model.id for model in client.models.list()] == ["router", "big", "small"]
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' does not exist"):
        client.chat.completions.create(model="gpt-9", messages=messages)
    with pytest.raises(openai.BadRequestError, match="messages must be a list"):
        client.chat.completions.create(model="router", messages=[])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address, api_key="another").models.list()


def test_openais_client_streams(address: str) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="t", max_retries=0)
    messages = [{"role": "user", "content": PROMPT}]
    with client.chat.completions.create(model="router", messages=messages, stream=True) as stream:
        assert [chunk.choices[0].delta.content or "" for chunk in stream] == ["", *WORDS, ""]
    with client.chat.completions.stream(model="router", messages=messages, tools=[TOOL]) as events:
        for _ in events:
            pass
        (call,) = events.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Lyon"}


def test_openais_asynchronous_client(address: str) -> None:
    import openai

    async def text(client: openai.AsyncOpenAI, number: int) -> list[str]:
        messages = [{"role": "user", "content": f"{PROMPT} {number}"}]
        stream = await client.chat.completions.create(model="router", messages=messages, stream=True)
        return [chunk.choices[0].delta.content or "" async for chunk in stream]

    async def all_texts() -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=address, api_key="t", max_retries=0) as client:
            return await asyncio.gather(*(text(client, number) for number in range(20)))

    assert asyncio.run(all_texts()) == [["", *WORDS, ""]] * 20


def test_openais_client_sees_errors_of_upstreams(address: str, big: Upstream, small: Upstream) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="t", max_retries=0)
    messages = [{"role": "user", "content": PROMPT}]
    big.answers[:0] = [fails(500)] * 2
    raw = client.chat.completions.with_raw_response.create(model="router-0", messages=messages)
    assert raw.parse().choices[0].message.content == "Paris"
    assert raw.headers["x-routerjax-model"] == "small"
    for upstream in (big, small):
        upstream.answers[:0] = [fails(429)] * 2
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="router-0", messages=messages)


def test_langchains_chat_model(address: str, big: Upstream, small: Upstream) -> None:
    from langchain_core.messages import HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="router", base_url=address, api_key=pydantic.SecretStr("t"), max_retries=0, temperature=0.5)
    conversation = [SystemMessage("You are terse."), HumanMessage(PROMPT)]
    answer = chat.invoke(conversation)
    assert answer.content == "Paris"
    assert answer.usage_metadata["total_tokens"] == 10
    assert fields_of((big, small))[0]["temperature"] == 0.5
    assert [part for part in (chunk.content for chunk in chat.stream(conversation)) if part] == WORDS
    (call,) = chat.bind_tools([TOOL]).invoke(conversation).tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Lyon"})
    assert chat.with_structured_output(City).invoke(conversation) == City(city="Paris")
    assert asyncio.run(chat.ainvoke(conversation)).content == "Paris"
    batch = chat.batch([[HumanMessage(f"{PROMPT} {number}")] for number in range(4)])
    assert [message.content for message in batch] == ["Paris"] * 4
