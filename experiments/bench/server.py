"""Server under load: time that routing adds, streams, faults of upstreams, and its end by SIGTERM.

    python experiments/bench/server.py [ROUTER] [--threads N] [--seconds 30] [--rate 50] [--streams 500] [--faults 1000]

ROUTER is checkpoints/mf-minilm unless given, or a bundle of it, with the threshold 0.5. The server is ``routerjax
serve`` in a process of its own, the upstreams of its two models are another, and this one sends the requests, all on
127.0.0.1.

- Routing: RATE requests a second, at even times, for prompts of 15 words in the median (log-normal, 1 to 200); time
  from a request to its decision as the access log has it, waiting included, after some that are not measured. Requests
  that are refused, since their decisions would take longer than 30 s, are counted.
- Streams: so many at once, of 40 numbered chunks each, every 20 to 60 ms; each must arrive whole and in order.
- Faults: so many tries are answered by 429, 500, 503, hang, cut streams or malformed JSON, before and after the first
  token; each request must end in time with a right answer, or an error in OpenAI's form.
- SIGTERM while 100 streams run: each must arrive whole, and the process must end with status 0.
- Neither logs nor metrics nor an answer may hold a key.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from routerjax.serving.text_scoring import open_scorer

KEYS = {"STRONG_KEY": "sk-strong-5f1d8a77e3", "WEAK_KEY": "sk-weak-93b1c02d4e"}
CHUNKS = 40
# Requests, one after the other, by which all three processes have opened what they open once.
WARM_UP = 20
# Seconds that the server gives its upstreams; a request whose upstreams hang may take them for every try.
LIMITS = {"connect": 8.0, "first_token": 8.0, "between_chunks": 8.0, "answer": 8.0}
FAULTS = ("429", "500", "503", "hang", "cut_early", "cut_late", "malformed", "malformed_late", "hang_late", "auth")
# Numbers of faults that the tries of a request meet at each model: with two at both, no model answers.
PLANS = {"strong": (1, 2, 2, 2), "weak": (0, 0, 1, 2)}
WORDS = (
    "the",
    "of",
    "capital",
    "prove",
    "river",
    "energy",
    "why",
    "how",
    "write",
    "number",
    "poem",
    "sort",
    "integral",
)


def event(number: int) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": f"{number} "}}]}).encode() + b"\n\n"


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
STREAM = b"".join(map(event, range(CHUNKS))) + END
WHOLE = json.dumps({"choices": [{"index": 0, "message": {"content": "an answer"}}]}).encode()


def upstream(port: int) -> None:
    """Serve both models; the body says which faults the tries of its request meet."""
    counted: collections.Counter[str] = collections.Counter()
    tries: collections.Counter[str] = collections.Counter()

    async def stream(pause: float, fault: str) -> AsyncIterator[bytes]:
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "cut_early":
            yield b'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
            raise ConnectionError
        if fault == "malformed":
            yield b"data: {nothing\n\n"
        for number in range(CHUNKS):
            if number == CHUNKS // 2:
                if fault == "cut_late":
                    yield event(number)[:10]
                    raise ConnectionError
                if fault == "malformed_late":
                    yield b'data: {"choices": [\n\n'
                if fault == "hang_late":
                    await asyncio.sleep(60)
            yield event(number)
            if pause:
                await asyncio.sleep(random.uniform(pause / 2, 1.5 * pause))
        yield END

    async def complete(request: Request) -> Response:
        fields = await request.json()
        faults = fields.get("x_faults", {}).get(fields["model"], [])
        key = f"{fields.get('x_id')}-{fields['model']}"
        fault = faults[tries[key]] if tries[key] < len(faults) else ""
        tries[key] += 1
        counted[fault or "none"] += 1
        if fault in ("429", "500", "503"):
            return JSONResponse({"error": {"message": f"no, {request.headers['authorization']}"}}, int(fault))
        if fault == "auth":
            return JSONResponse({"error": {"message": f"bad {request.headers['authorization']}"}}, 401)
        if fields.get("stream"):
            return StreamingResponse(stream(fields.get("x_pause", 0), fault), media_type="text/event-stream")
        if fault.startswith("hang"):
            await asyncio.sleep(60)
        if fault.startswith("cut"):
            return StreamingResponse(stream(0, "cut_early"), media_type="application/json")
        return Response(WHOLE[: len(WHOLE) // 2 if fault else None], media_type="application/json")

    async def counts(request: Request) -> Response:
        del request
        return JSONResponse(counted)

    routes = [Route("/v1/chat/completions", complete, methods=["POST"]), Route("/counts", counts)]
    uvicorn.run(Starlette(routes=routes), port=port, log_level="critical", backlog=2048)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Run:
    """Server in a process of its own, and a client of it."""

    def __init__(self, router: str, threads: int | None, upstream_port: int, folder: Path, **settings: object) -> None:
        pair = open_scorer(router).pair
        assert pair is not None
        address = {"base_url": f"http://127.0.0.1:{upstream_port}/v1"}
        models = {
            pair.strong: {**address, "model": "strong", "api_key_env": "STRONG_KEY"},
            pair.weak: {**address, "model": "weak", "api_key_env": "WEAK_KEY"},
        }
        self.strong, self.weak = pair.strong, pair.weak
        (folder / "serve.yaml").write_text(json.dumps({"models": models, **settings}))
        self.log = folder / "access.jsonl"
        command = [sys.executable, "-m", "routerjax.cli", "serve", router, "--config", str(folder / "serve.yaml")]
        command += ["--port", "0", "--threshold", "0.5"]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, *([] if threads is None else ["--threads", str(threads)]), "--access-log", str(self.log)],
            env={**os.environ, **KEYS},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        match = re.search(r"http://\S+", self.process.stderr.readline())
        assert match is not None
        self.limits = httpx2.Limits(max_connections=None)
        self.client = httpx2.AsyncClient(base_url=match[0], timeout=120, trust_env=False, limits=self.limits)
        with httpx2.Client(base_url=match[0], trust_env=False) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.1)
        self.start_seconds = time.perf_counter() - start

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def body(prompt: str, model: str = "router", **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}


def prompts(count: int, rng: random.Random) -> list[str]:
    lengths = [min(200, max(1, round(rng.lognormvariate(2.7, 0.9)))) for _ in range(count)]
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


async def measure_routing(run: Run, seconds: float, rate: float) -> str:
    rng, requests, refused = random.Random(0), [], []

    async def ask(prompt: str, model: str) -> float:
        begin = time.perf_counter()
        answer = await run.client.post("/v1/chat/completions", json=body(prompt, model))
        refused.append(answer.status_code == 503)
        assert answer.content == WHOLE or refused[-1]
        return time.perf_counter() - begin

    for _ in range(WARM_UP):
        await ask("warm up", "router")
    start = time.perf_counter()
    for number, prompt in enumerate(prompts(int(seconds * rate), rng)):
        await asyncio.sleep(max(0, start + number / rate - time.perf_counter()))
        requests.append(asyncio.create_task(ask(prompt, "router")))
    await asyncio.gather(*requests)
    refusals = sum(refused)
    await asyncio.sleep(0.5)  # each is written after its answer
    routed = [record["routing_seconds"] for record in run.records() if "routing_seconds" in record]
    took = np.asarray(routed[WARM_UP:]) * 1e3
    named = np.asarray([await ask("hi", run.weak) for _ in range(200)]) * 1e3
    p50, p99 = np.percentile(took, [50, 99])
    return (
        f"routing, {len(took)} requests, {rate:g} a second: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {refusals} refused; "
        f"without routing, one request after the other, an answer takes {np.median(named):.1f} ms (p50)"
    )


async def streamed(run: Run, number: int, **fields: object) -> tuple[int, bytes]:
    request = body(f"stream {number}", stream=True, x_id=str(number), **fields)
    async with run.client.stream("POST", "/v1/chat/completions", json=request) as answer:
        return answer.status_code, b"".join([part async for part in answer.aiter_raw()])


async def measure_streams(run: Run, count: int) -> str:
    start = time.perf_counter()
    answers = await asyncio.gather(*(streamed(run, number, x_pause=0.04) for number in range(count)))
    whole = sum(answer == (200, STREAM) for answer in answers)
    seconds = time.perf_counter() - start
    others = {content[-200:] for _, content in answers if content != STREAM}
    assert not others, f"{count - whole} of {count} streams are not whole, such as {others.pop()!r}"
    return f"{count} streams at once: {whole} whole and in order, in {seconds:.1f} s, of {CHUNKS} chunks each"


async def measure_faults(run: Run, count: int, upstream_port: int) -> str:
    rng = random.Random(1)
    outcomes: collections.Counter[str] = collections.Counter()
    met, requests, longest = 0.0, [], 0.0
    gate = asyncio.Semaphore(64)

    async def ask(number: int, faults: dict[str, list[str]], is_stream: bool) -> None:
        nonlocal longest
        async with gate:
            begin = time.perf_counter()
            request = body("hi", "router-0", stream=is_stream, x_id=f"fault-{number}", x_faults=faults)
            answer = await asyncio.wait_for(run.client.post("/v1/chat/completions", json=request), 90)
            longest = max(longest, time.perf_counter() - begin)
        assert not [key for key in KEYS.values() if key in f"{answer.headers}{answer.text}"]
        outcomes[outcome(answer, is_stream)] += 1

    number = 0
    while met < count:  # of the faults that are planned, about so many are met, before an answer
        faults = {model: [rng.choice(FAULTS) for _ in range(rng.choice(counts))] for model, counts in PLANS.items()}
        requests.append(ask(number, faults, rng.random() < 0.6))
        met, number = met + 1.9, number + 1
    await asyncio.gather(*requests)
    async with httpx2.AsyncClient(trust_env=False) as client:
        counted = (await client.get(f"http://127.0.0.1:{upstream_port}/counts")).json()
    faults = {name: counted.get(name, 0) for name in FAULTS}
    told = ", ".join(f"{name} {value}" for name, value in sorted(outcomes.items()))
    return (
        f"{sum(faults.values())} faults ({', '.join(f'{value} {name}' for name, value in faults.items())}) in {number} "
        f"requests: {told}; the longest request took {longest:.1f} s"
    )


def outcome(answer: httpx2.Response, is_stream: bool) -> str:
    """Say how a request ended; "WRONG" of an answer that is neither right nor an error in OpenAI's form."""
    if answer.status_code != 200:
        error = answer.json()["error"]
        is_error = set(error) == {"message", "type", "param", "code"} and answer.status_code in (429, 502, 504)
        return "an error instead of an answer" if is_error else "WRONG"
    if not is_stream:
        return "a right answer" if answer.content == WHOLE else "WRONG"
    if answer.content == STREAM:
        return "a right stream"
    *events, last, rest = answer.content.split(b"\n\n")
    is_part = STREAM.startswith(b"\n\n".join(events) + b"\n\n") and not rest
    is_error = json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_stream_broken"
    return "a stream that ends with an error" if is_part and is_error else "WRONG"


async def measure_end(run: Run, count: int = 100) -> str:
    requests = [asyncio.create_task(streamed(run, number, x_pause=0.1)) for number in range(count)]
    await asyncio.sleep(2)
    run.process.send_signal(signal.SIGTERM)
    start = time.perf_counter()
    answers = await asyncio.gather(*requests)
    whole = sum(answer == (200, STREAM) for answer in answers)
    await asyncio.to_thread(run.process.wait, 60)
    took = time.perf_counter() - start
    return f"SIGTERM with {count} streams: {whole} whole, status {run.process.returncode} after {took:.1f} s"


async def main(arguments: argparse.Namespace) -> None:
    port = free_port()
    models = subprocess.Popen([sys.executable, __file__, "--upstream", str(port)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(arguments.router, arguments.threads, port, Path(folder), seconds=LIMITS, longest_wait=0.5)
            try:
                print(f"started and compiled in {run.start_seconds:.1f} s", flush=True)
                print(await measure_routing(run, arguments.seconds, arguments.rate), flush=True)
                if arguments.streams:
                    print(await measure_streams(run, arguments.streams), flush=True)
                if arguments.faults:
                    print(await measure_faults(run, arguments.faults, port), flush=True)
                metrics = (await run.client.get("/metrics")).text
                print(await measure_end(run), flush=True)
                assert run.process.stderr is not None
                shown = metrics + run.log.read_text() + run.process.stderr.read()
                print(f"keys shown: {sum(key in shown for key in KEYS.values())}")
            finally:
                run.process.kill()
                await run.client.aclose()
    finally:
        models.terminate()
        models.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router", nargs="?", default="checkpoints/mf-minilm")
    parser.add_argument("--threads", type=int, help="of onnxruntime")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.upstream is not None:
        upstream(parsed.upstream)
    else:
        asyncio.run(main(parsed))
