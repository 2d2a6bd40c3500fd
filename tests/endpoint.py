"""A real server of ``POST /v1/embeddings`` on this machine, which misbehaves when told to."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

KEY = "the key"
Reply = tuple[int, dict[str, str], bytes]


def embedding_of(prompt: str, width: int = 6) -> np.ndarray:
    """Return the server's embedding of a prompt: float32, of unit length, another one for every prompt."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def embeddings_of(prompts: Sequence[str], width: int = 6) -> np.ndarray:
    return np.stack([embedding_of(prompt, width) for prompt in prompts])


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Base URL of a server that hands each connection, once a request has begun, to ``talk``, and then resets it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed: the test is over
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                talk(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


class EndpointServer:
    """Serves while it is entered.

    Attributes:
        script: what to do with the next requests instead of answering well; taken from the front. A text is the name of
            a method ``reply_...`` here.
        requests: the bodies that came, in order; ``arrived`` their times, seconds.
        max_prompts, max_characters: a request with more is refused with status 400.
        fails_beyond: a request with a prompt of more characters is answered with status 500.
        key: that is accepted.
        knows_base64: whether ``encoding_format`` is obeyed, or numbers are sent all the same.
    """

    def __init__(self) -> None:
        self.script: list[str | Callable[[dict], Reply]] = []
        self.requests: list[dict] = []
        self.arrived: list[float] = []
        self.width = 6
        self.max_prompts = self.max_characters = 10**9
        self.fails_beyond = 10**9
        self.knows_base64 = True
        self.key = KEY
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content = outer.reply(self.path, self.headers["Authorization"], body)
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    if "Content-Length" not in headers:
                        self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    self.close_connection = "Content-Length" in headers
                except ConnectionError:  # the client gave up waiting
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> EndpointServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def sizes(self) -> list[int]:
        """Prompts in each request."""
        return [len(request["input"]) for request in self.requests]

    def reply(self, path: str, authorization: str | None, body: dict) -> Reply:
        self.arrived.append(time.monotonic())
        self.requests.append(body)
        if path != "/v1/embeddings" or body["model"] != "tiny":
            return self.error(404, f"no model {body['model']} at {path}")
        if authorization != f"Bearer {self.key}":
            return self.error(401, "Incorrect API key provided")
        if len(body["input"]) > self.max_prompts:
            return self.error(400, f"at most {self.max_prompts} inputs")
        if max(map(len, body["input"])) > self.max_characters:
            return self.error(400, "This model's maximum context length is 8192 tokens")
        if max(map(len, body["input"])) > self.fails_beyond:
            return self.error(500, "input is too large to process. increase the physical batch size")
        step = self.script.pop(0) if self.script else "well"
        return getattr(self, f"reply_{step}")(body) if isinstance(step, str) else step(body)

    def error(self, status: int, message: str, **headers: str) -> Reply:
        # The wait is the server's to name, so the tests take no longer than they must.
        content = json.dumps({"error": {"message": message, "type": "server_error"}}).encode()
        return status, {"retry-after-ms": "10", **headers}, content

    def items(self, body: dict) -> list[dict]:
        width = body.get("dimensions", self.width)
        as_text = body["encoding_format"] == "base64" and self.knows_base64
        rows = embeddings_of(body["input"], width)
        return [
            {"index": i, "embedding": base64.b64encode(row.tobytes()).decode() if as_text else row.tolist()}
            for i, row in enumerate(rows)
        ]

    def answer(self, items: Sequence[object], body: dict) -> Reply:
        tokens = sum(len(prompt.split()) for prompt in body["input"])
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return 200, {}, json.dumps({"object": "list", "data": items, "model": "tiny", "usage": usage}).encode()

    def reply_well(self, body: dict) -> Reply:
        return self.answer(self.items(body), body)

    def reply_without_usage(self, body: dict) -> Reply:
        return 200, {}, json.dumps({"object": "list", "data": self.items(body), "model": "tiny"}).encode()

    def reply_busy(self, body: dict) -> Reply:
        return 429, {"Retry-After": "1"}, b'{"error": {"message": "Rate limit reached"}}'

    def reply_broken(self, body: dict) -> Reply:
        return self.error(500, "The server had an error")

    def reply_slowly(self, body: dict) -> Reply:
        self.stopping.wait(30)
        return self.reply_well(body)

    def reply_truncated(self, body: dict) -> Reply:
        status, _, content = self.reply_well(body)
        return status, {"Content-Length": str(len(content))}, content[: len(content) // 2]

    def reply_half(self, body: dict) -> Reply:
        return self.answer(self.items(body)[: len(body["input"]) // 2], body)

    def reply_shuffled(self, body: dict) -> Reply:
        return self.answer(self.items(body)[::-1], body)

    def reply_twice_the_first(self, body: dict) -> Reply:
        items = self.items(body)
        return self.answer([items[0], *items[:-1]], body)

    def reply_one_more(self, body: dict) -> Reply:
        items = self.items(body)
        return self.answer([*items, {**items[0], "index": len(items)}], body)

    def reply_one_twice(self, body: dict) -> Reply:
        items = self.items(body)
        return self.answer([*items, items[0]], body)

    def reply_not_json(self, body: dict) -> Reply:
        return 200, {}, b'{"data": [{"index": 0, "embed'

    def reply_a_page(self, body: dict) -> Reply:
        return 200, {"Content-Type": "text/html"}, b"<html>Sign in</html>"

    def reply_a_list(self, body: dict) -> Reply:
        return 200, {}, b"[]"

    def reply_not_finite(self, body: dict) -> Reply:
        return self.answer([{**item, "embedding": [float("nan")] * 6} for item in self.items(body)], body)

    def reply_beyond_float32(self, body: dict) -> Reply:
        return self.answer([{**item, "embedding": [1e39] * 6} for item in self.items(body)], body)

    def reply_ragged(self, body: dict) -> Reply:
        items = self.items(body)
        return self.answer([{**items[0], "embedding": [0.5] * 3}, *items[1:]], body)

    def reply_damaged_base64(self, body: dict) -> Reply:
        return self.answer([{**item, "embedding": "AAAAA"} for item in self.items(body)], body)

    def reply_no_numbers(self, body: dict) -> Reply:
        return self.answer([{**item, "embedding": None} for item in self.items(body)], body)

    def reply_of_many_digits(self, body: dict) -> Reply:
        items = [{**item, "embedding": [0.5] * 6} for item in self.items(body)]
        status, headers, content = self.answer(items, body)
        return status, headers, content.replace(b"0.5", b"9" * 400 + b".5", 1)

    def reply_integer(self, body: dict) -> Reply:
        items = [{**item, "embedding": [10**400] * 6} for item in self.items(body)]
        return self.answer(items, body)

    def reply_deep(self, body: dict) -> Reply:
        return 200, {}, b'{"data": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"

    def reply_of_absurd_usage(self, body: dict) -> Reply:
        return 200, {}, json.dumps({"data": self.items(body), "usage": {"total_tokens": 10**400}}).encode()

    def reply_compressed(self, body: dict) -> Reply:
        return 200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(10**6))

    def reply_elsewhere(self, body: dict) -> Reply:
        return 307, {"Location": "http://other.example:81/v1/embeddings?key=hidden"}, b""

    def reply_wide(self, body: dict) -> Reply:
        return self.answer(self.items({**body, "dimensions": self.width + 1}), body)
