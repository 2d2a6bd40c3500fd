"""Running servers of a small router, with upstreams on this machine."""

import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import yaml

from routerjax import Router
from routerjax.serving.app import Server
from routerjax.serving.config import read_config
from routerjax.serving.text_scoring import RouterScorer, TextScorer
from tests.serving.upstream import Upstream, running

KEYS = {"BIG_KEY": "sk-big-0123456789", "SMALL_KEY": "sk-small-0123456789"}
LIMITS = {"connect": 2.0, "first_token": 1.0, "between_chunks": 1.0, "answer": 1.0}


def settings(big: Upstream, small: Upstream, **changes: object) -> dict:
    """Configuration of a strong and a weak model, with keys that are in the environment as :data:`KEYS`."""
    models = {
        "big": {"base_url": big.url, "api_key_env": "BIG_KEY", "model": "vendor/big", "prompt_dollars": 10.0},
        "small": {"base_url": small.url, "api_key_env": "SMALL_KEY", "completion_dollars": 2.0},
    }
    return {"models": models, "seconds": LIMITS, "longest_wait": 0.3, **changes}


class Running:
    """Running server: its address, its access log, and a client of it."""

    def __init__(self, address: str, log: io.StringIO, server: Server) -> None:
        self.address, self.log, self.server = address, log, server
        self.client = httpx2.Client(base_url=address, timeout=20, trust_env=False)

    def chat(self, content: object = "hello", model: str = "router", **fields: object) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def metric(self, name: str, **labels: str) -> float:
        return self.server.metrics.registry.get_sample_value(f"routerjax_{name}", labels) or 0.0

    def record(self, answer: httpx2.Response) -> dict:
        """Line of the access log of a request that was answered; it is written after the answer is sent."""
        request_id = answer.headers["x-routerjax-request-id"]
        wait_for(lambda: f'"{request_id}"' in self.log.getvalue(), 5)
        return next(json.loads(line) for line in self.log.getvalue().splitlines() if request_id in line)


@contextlib.contextmanager
def serving(router: Router | TextScorer, folder: Path, config: dict, **options: object) -> Iterator[Running]:
    """Serve until the body ends; the router is ready in it."""
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    log = io.StringIO()
    scorer = RouterScorer(router) if isinstance(router, Router) else router
    server = Server(scorer, read_config(path), access_log=log, **options)  # pyright: ignore[reportArgumentType]
    with running(server.app) as address:
        started = Running(address, log, server)
        with started.client:
            wait_for(lambda: started.client.get("/ready").status_code == 200)
            yield started


def wait_for(condition: object, seconds: float = 60.0) -> None:
    """Wait until a function returns True."""
    end = time.monotonic() + seconds
    while not condition():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
