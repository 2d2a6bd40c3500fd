"""The command as a process of its own: its start, its log, and its end, which waits for what runs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette

from routerjax import Router
from routerjax.cli import main
from routerjax.router import save_router
from routerjax.serving.run import listen, serve
from routerjax.serving.text_scoring import RouterScorer
from tests.serving.servers import settings, wait_for
from tests.serving.upstream import STREAM, Upstream, streams


def test_sigterm_lets_what_runs_end(small_router: Router, big: Upstream, small: Upstream, tmp_path: Path) -> None:
    save_router(small_router, tmp_path / "router")
    (tmp_path / "serve.yaml").write_text(json.dumps(settings(big, small)))
    command = [sys.executable, "-m", "routerjax.cli", "serve", "router", "--config", "serve.yaml", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [*command, "--log-preferences", "log.jsonl"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        match = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", process.stderr.readline())
        assert match
        with httpx2.Client(base_url=match[1], timeout=60, trust_env=False) as client:
            wait_for(lambda: client.get("/ready").status_code == 200)
            parts = [part for event in STREAM for part in (event, 0.1)]
            big.answers += [streams(*parts)] * 8
            body = {"model": "router-0", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            answers: list[httpx2.Response] = []

            def ask() -> None:
                answers.append(client.post("/v1/chat/completions", json=body))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            wait_for(lambda: big.open == 8, 10)
            process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(20)
            assert [answer.content for answer in answers] == [b"".join(STREAM)] * 8
            output, errors = process.communicate(timeout=20)
            assert process.returncode == 0, errors
            with pytest.raises(httpx2.ConnectError):
                client.get("/health")
    finally:
        process.kill()
        process.communicate()
    assert errors == "the router is ready\n"
    records = [json.loads(line) for line in output.splitlines()]
    assert [record["status"] for record in records if record["path"] == "/v1/chat/completions"] == [200] * 8
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_a_router_that_cannot_be_compiled_ends_the_server_in_one_line(
    small_router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: RouterScorer) -> None:
        raise MemoryError("no memory on the device")

    monkeypatch.setattr(RouterScorer, "warm_up", fail)
    save_router(small_router, tmp_path / "router")
    address = {"base_url": "http://127.0.0.1:1/v1"}
    (tmp_path / "serve.yaml").write_text(json.dumps({"models": {"big": address, "small": address}}))
    command = ["serve", str(tmp_path / "router"), "--config", str(tmp_path / "serve.yaml")]
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        assert main([*command, "--port", str(port)]) == 1
        assert f"cannot listen on 127.0.0.1:{port}: " in capsys.readouterr().err
    assert main([*command, "--port", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "routerjax: error: the router could not be made ready"


def test_a_signal_that_comes_before_the_server_listens_to_signals_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = uvicorn.Server.run

    def run_late(server: uvicorn.Server, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        timer = threading.Timer(10, lambda: setattr(server, "should_exit", True))
        timer.start()
        run(server, **options)  # pyright: ignore[reportArgumentType]
        timer.cancel()

    monkeypatch.setattr(uvicorn.Server, "run", run_late)
    start = time.monotonic()
    with listen("127.0.0.1", 0) as listening:
        assert serve(SimpleNamespace(app=Starlette()), listening, grace=1.0)  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - start < 8
