"""Servers, keys and addresses never show a secret, take for ever or fill the memory."""

import concurrent.futures
import json
import socket
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from routerjax import InputError, features
from tests.endpoint import KEY, EndpointServer, raw_server

PROMPTS = ["Hello there", "Prove it"]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as running:
        yield running


def encoder_of(server: EndpointServer, source: str = "openai:tiny", **arguments: object) -> features.EndpointEncoder:
    return features.EndpointEncoder(source, **{"base_url": server.base_url, "api_key": KEY, **arguments})


@pytest.mark.parametrize(
    "base_url",
    [
        "localhost:8000/v1",
        "http://me:secret@host/v1",
        "http://secret@host/v1",
        "https://host/v1?key=secret",
        "https://host/v1#secret",
        "http://[::1/v1",
        "http://host:99999/v1",
        "http://host:secret/v1",
        "http:///v1",
        "http://host..secret/v1",
        "http://10.0.0.999/secret",
        "http://h\u00f6st/v1",
        "http://host/v1 secret",
        "http://host\nsecret/v1",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(base_url: str) -> None:
    with pytest.raises(InputError, match="must look like http://HOST:PORT/v1") as refusal:
        features.EndpointEncoder("openai:tiny", base_url=base_url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("key", ["the-secret\r", "the-secret\n", " the-secret", "the-s\u00e9cret", "the-sec\nret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(server: EndpointServer, key: str) -> None:
    with pytest.raises(
        InputError, match=r"OPENAI_API_KEY \(or api_key\) (begins or ends|must be of printable)"
    ) as error:
        encoder_of(server, api_key=key).encode(PROMPTS)
    assert not any(part in "".join(traceback.format_exception(error.value)) for part in ("the-s", "cret"))
    assert server.requests == []


SECRET = 'sk-marker/"+7d1f'


def echo(status: int) -> Callable[[dict], tuple[int, dict[str, str], bytes]]:
    error = {"error": {"message": f"no: Bearer {SECRET} is {urllib.parse.quote(SECRET, safe='')}"}}
    return lambda body: (status, {"retry-after-ms": "1"}, json.dumps(error).encode())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500, 302])
def test_a_key_that_the_server_echoes_is_not_shown(
    server: EndpointServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = SECRET
    server.script = [echo(status)] * 100
    with pytest.raises((InputError, OSError), match=r"no: Bearer \[key\] is \[key\]|redirects") as error:
        encoder_of(server, api_key=SECRET, max_retries=1).encode(PROMPTS)
    shown = "".join(traceback.format_exception(error.value)) + caplog.text
    assert "marker" not in shown
    assert server.requests


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 " + SECRET.encode() + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + SECRET.encode() + b"\r\n\r\n"]
)
def test_a_key_in_a_line_that_is_no_http_is_not_shown(line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with (
        raw_server(lambda connection: connection.sendall(line)) as base_url,
        pytest.raises(OSError, match="does not answer") as error,
    ):
        features.EndpointEncoder("openai:tiny", base_url=base_url, api_key=SECRET, max_retries=1).encode(["x"])
    assert "marker" not in "".join(traceback.format_exception(error.value)) + caplog.text


def test_no_file_of_a_cache_holds_the_key(server: EndpointServer, tmp_path: Path) -> None:
    server.key = SECRET
    with features.EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        encoder_of(server, api_key=SECRET).encode(PROMPTS, cache=cache)
        assert all(b"marker" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_redirect_gets_neither_key_nor_prompts(server: EndpointServer) -> None:
    with EndpointServer() as other:
        server.script = [lambda body: (307, {"Location": f"{other.base_url}/embeddings"}, b"")]
        with pytest.raises(
            InputError, match=r"redirects to http://127.0.0.1, to which neither the key nor the prompts"
        ):
            encoder_of(server).encode(PROMPTS)
        assert other.requests == []
    server.script = ["elsewhere"]
    with pytest.raises(InputError, match=r"redirects to http://other\.example, to which") as error:
        encoder_of(server).encode(PROMPTS)
    assert "hidden" not in str(error.value)


def trickle(start: bytes, more: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(100):
            time.sleep(0.1)
            connection.sendall(more)

    return talk


SILENT = {
    "hang": lambda connection: time.sleep(2),
    "drip of the body": trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "drip of the headers": trickle(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "reset": lambda connection: None,
}


@pytest.mark.parametrize("trouble", SILENT)
def test_no_server_takes_longer_than_the_time_limit_and_each_retry_is_said(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    with raw_server(SILENT[trouble]) as base_url:
        began = time.monotonic()
        encoder = features.EndpointEncoder("openai:tiny", base_url=base_url, api_key=KEY, timeout=0.4, time_limit=1.5)
        with pytest.raises(OSError, match=r"does not answer: .*, within the time limit of 1.5 s \(ROUTERJAX_ENDPOINT_"):
            encoder.encode(["x"])
        assert time.monotonic() - began < 3
    assert "asking again in 0.5 s (retry 1 of 8)" in caplog.text


def test_a_part_of_an_answer_is_none_however_late_its_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = concurrent.futures.Future.result
    # A caller that the machine wakes too late.
    monkeypatch.setattr(concurrent.futures.Future, "result", lambda future, timeout=None: wait(future))
    with raw_server(SILENT["drip of the body"]) as base_url:
        encoder = features.EndpointEncoder("openai:tiny", base_url=base_url, api_key=KEY, timeout=0.2, max_retries=0)
        with pytest.raises(OSError, match=r"does not answer: no whole answer within 0.2 s"):
            encoder.encode(["x"])


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_the_time_limit_is_a_setting_of_the_environment(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("ROUTERJAX_ENDPOINT_SECONDS", limit)
    with pytest.raises(
        InputError, match=f"ROUTERJAX_ENDPOINT_SECONDS must be a positive number of seconds, got '{limit}'"
    ):
        features.EndpointEncoder("openai:tiny")


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    sent = []

    def talk(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        part = bytes(2**20)
        sent.append(0)
        while sent[-1] < 1000:
            connection.sendall(part)
            sent[-1] += 1

    with raw_server(talk) as base_url, pytest.raises(OSError, match=r"answers with more than 1,179,648 bytes.* row 0"):
        features.EndpointEncoder("openai:tiny", base_url=base_url, api_key=KEY).encode(["x"])
    assert max(sent) < 20  # what the sockets hold besides
    assert len(sent) <= 2


def test_a_compressed_answer_is_refused_before_it_is_unpacked(server: EndpointServer) -> None:
    server.script = ["compressed"]
    with pytest.raises(OSError, match="answers in the encoding 'gzip', which it was not asked for"):
        encoder_of(server).encode(PROMPTS)
    assert len(server.requests) == 1
