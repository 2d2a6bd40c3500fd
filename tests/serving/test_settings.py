"""Configurations of the server, each refused in one line before anything is served."""

import json
import os
import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from routerjax import InputError, Router
from routerjax.cli import SCORED, main
from routerjax.features import load_encoder
from routerjax.policies import CostAware
from routerjax.router import load_router, save_router
from routerjax.serving.app import Server
from routerjax.serving.config import Scored, TimeLimits, read_config, router_names
from routerjax.serving.conversation import Conversations
from routerjax.serving.text_scoring import RouterScorer
from tests.encoders import save_tiny_encoder
from tests.routers import NAMES, tiny_router
from tests.serving.servers import serving
from tests.serving.upstream import running_upstream, whole

ROOT = Path(__file__).resolve().parents[2]
URL = {"base_url": "http://127.0.0.1:1/v1"}
PAIR = {"big": URL, "small": URL}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"big": URL}}, "no upstream of small: add models.NAME"),
        ({"models": {"big": URL, "smal": URL}}, "no upstream of small: .* \\(did you mean 'smal'\\?\\)"),
        ({"models": {"big": {}, "small": URL}}, "serve.models.big.base_url must be given"),
        ({"models": {"big": {**URL, "api_key": "sk-1"}}}, "no setting 'serve.models.big.api_key'.*mean 'api_key_env'"),
        ({"models": {**PAIR, "router-1": URL}}, "no model may be called 'router-1'"),
        ({"models": {"big": {**URL, "api_key_env": "NO_SUCH"}, "small": URL}}, "api_key_env: .* NO_SUCH is not set"),
        ({"models": {"big": {**URL, "api_key_env": "BAD_KEY"}, "small": URL}}, "BAD_KEY must be of printable ASCII"),
        ({"models": PAIR, "retries": -1}, "serve.retries must be an integer in \\[0, 10\\], got -1"),
        ({"models": PAIR, "seconds": {"connect": "5"}}, "serve.seconds.connect must be a positive number, got '5'"),
        ({"models": PAIR, "fallback": ["medium"]}, "'medium' is not one of the configured 2 models"),
        ({"models": PAIR, "instead": {"tiny": "big"}}, "'tiny' is not one of the router's 3 models"),
        ({"models": PAIR, "instead": {"big": "small"}}, "big has an upstream, and instead.big names another"),
        *(
            ({"models": {**PAIR, "big": {"base_url": address}}}, "base_url must look like http://HOST:PORT/v1")
            for address in ("ftp://x", "http://a:secret@x/", "http://x/v1?", "http://a..b/v1", "http://1.2.3.999/v1")
        ),
        ({"models": PAIR, "token_env": "NO_SUCH"}, "token_env: the environment variable NO_SUCH is not set"),
        ({"models": PAIR, "token_env": "sk-secret"}, "token_env must be the name of an environment variable"),
        ({"models": {**PAIR, "big": {**URL, "api_key_env": "gsk_secret"}}}, "api_key_env must be the name of"),
        ({"models": {**PAIR, "big": "sk-secret"}}, "serve.models.big must be a mapping; its text is not shown"),
        ({"models": "sk-secret"}, "serve.models must be a mapping; its text is not shown"),
        (None, "is not YAML"),
        ([], "serve must be a ServeConfig"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    small_router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: object, message: str
) -> None:
    monkeypatch.setenv("BAD_KEY", "sk-\u00e9")
    path = tmp_path / "serve.yaml"
    path.write_text("models: {a: &x 1, b: *x}" if changes is None else json.dumps(changes))
    with pytest.raises(InputError) as raised:
        Server(RouterScorer(small_router), read_config(path))
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_guide_and_the_readme_show_what_is_read(tmp_path: Path) -> None:
    first, defaults = re.findall("```yaml\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    (shown,) = re.findall("cat > serve.yaml <<'END'\n(.*?)END\n", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "serve.yaml"
    router = load_router(ROOT / "checkpoints" / "mf-minilm")
    for text in (first, shown, first + defaults):
        path.write_text(text)
        config = read_config(path)
        config.require_upstreams(router.models, (router.strong, router.weak))
        assert config.seconds == TimeLimits()
        assert config.models["gpt-4-1106-preview"].url == "https://api.openai.com/v1/chat/completions"


def test_a_long_name_takes_no_time_to_read() -> None:
    names = router_names("router")
    assert names.fullmatch("router-" + "1" * 10**7 + "x") is None  # in hours, by a pattern that goes back and forth
    texts = ("router-0.7", "router-.5", "router-1", "router-1e-3", "router-inf", "router")
    assert [match[1] for match in map(names.fullmatch, texts) if match] == ["0.7", ".5", "1", "1e-3", "inf", None]


def test_a_key_of_yaml_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("models:\n  big: {base_url: http://a}\n  big: {base_url: http://b}\n")
    with pytest.raises(InputError, match="the key 'big' is there twice, line 2"):
        read_config(tmp_path / "serve.yaml")


def test_the_command_refuses_in_one_line(
    small_router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_router(small_router.with_threshold(None), tmp_path / "router")
    (tmp_path / "serve.yaml").write_text(json.dumps({"models": PAIR}))
    command = ["serve", str(tmp_path / "router"), "--config", str(tmp_path / "serve.yaml"), "--port", "0"]
    for options, message in (
        ([], "this router has no threshold yet: find one by calibrate (--strong-share P --output DIR), or give one"),
        (
            ["--threshold", "0.5", "--strip", "("],
            "--strip must be a regular expression in RE2's syntax, got '(': missing )",
        ),
        (["--threshold", "0.5", "--strip", "(?=a)"], "got '(?=a)': invalid perl operator: (?="),
        (["--port", "70000"], "--port must be in [0, 65535], got 70000"),
        (["--threshold", "2"], "the threshold must lie in [0, 1]"),
    ):
        assert main([*command, *options]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "Traceback" not in shown


def test_logs_that_cannot_be_appended_to_are_refused_and_not_waited_for(
    small_router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_router(small_router, tmp_path / "router")
    (tmp_path / "serve.yaml").write_text(json.dumps({"models": PAIR}))
    pipe, folder, both = tmp_path / "pipe.jsonl", tmp_path / "folder.jsonl", str(tmp_path / "both.jsonl")
    os.mkfifo(pipe)
    folder.mkdir()
    command = ["serve", str(tmp_path / "router"), "--config", str(tmp_path / "serve.yaml"), "--port", "0"]
    for options, message in (
        (["--log-preferences", str(pipe)], "pipe.jsonl must be a regular file"),
        (["--log-preferences", str(folder)], "folder.jsonl: it is a folder"),
        (["--access-log", str(pipe)], "pipe.jsonl: it is a pipe that no process reads"),
        (["--access-log", str(folder)], "folder.jsonl: it is a folder"),
        (["--access-log", str(tmp_path / "none" / "log")], "none does not exist; create it first"),
        (["--access-log", both, "--log-preferences", both], "must be two different files"),
        (["--access-log", os.devnull, "--host", "a" * 100], "--host must be an address or the name of a machine"),
    ):
        assert main([*command, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_said_in_one_line(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "router", "--config", "serve.yaml"]) == 2
    message = f"routerjax serve needs {package}, which is missing: pip install 'routerjax[serve]'"
    assert capsys.readouterr().err == f"routerjax: error: {message}\n"


def test_many_models_are_chosen_among_by_cost(tmp_path: Path) -> None:
    prompts = ["what is the capital", "prove that there are primes", "write a poem", "zebra", "country country"]
    save_tiny_encoder(tmp_path / "encoder")
    featurizer = load_encoder(tmp_path / "encoder", max_length=16)
    scores = tiny_router(tmp_path, featurizer=featurizer).scores(prompts)
    cost = dict(zip(NAMES, scores.mean(axis=0).tolist(), strict=True))
    router = tiny_router(tmp_path, featurizer=featurizer, policy=CostAware(cost, cost_weight=1.0))
    assert set(router.route(prompts)) == set(NAMES)
    with running_upstream() as upstream:
        models = {name: {"base_url": upstream.url, "model": f"{name}-upstream"} for name in ("big", "small")}
        config = {"models": models, "instead": {"medium": "small"}, "fallback": ["big"]}
        with serving(router, tmp_path, config) as started:
            for prompt, model, of_models in zip(prompts, router.route(prompts), scores.tolist(), strict=True):
                answer = started.chat(prompt)
                assert answer.content == whole().body
                assert answer.headers["x-routerjax-model"] == ("small" if model == "medium" else model)
                assert "x-routerjax-win-prob" not in answer.headers
                decision = started.client.post("/route", json={"prompt": prompt}).json()
                assert decision["model"] == model
                assert decision["scores"] == pytest.approx(dict(zip(NAMES, of_models, strict=True)), abs=1e-5)
            assert started.chat(model="router-0.5").status_code == 404


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TALK = [
    {"role": "system", "content": "be brief"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "first <x>scaffold</x>"}, IMAGE, {"type": "text", "text": "2"}],
    },
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "tool", "content": "result"},
    {"role": "user", "content": "last <x>more\nlines</x>"},
    {"role": "assistant", "tool_calls": []},
    {"role": "tool", "content": "another result"},
]


@pytest.mark.parametrize(
    ("scored", "text"),
    [
        ("last", "last"),
        ("user_turns", "first \n2\n\nlast"),
        ("all", "be brief\n\nfirst \n2\n\nresult\n\nlast\n\nanother result"),
    ],
)
def test_text_that_is_scored(scored: str, text: str) -> None:
    assert Conversations(scored, ["(?s)<x>.*?</x>"]).text(TALK) == text  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("pattern", "text"), [("(?s)<x>.*?</x>", "<x>" * 1_000_000), ("(a|aa)+$", "a" * 1_000_000 + "b")]
)
def test_a_search_of_a_pattern_does_not_backtrack(pattern: str, text: str) -> None:
    # By Python's re the first takes hours, and the second does not end.
    assert Conversations("last", [pattern]).text([{"role": "user", "content": text}]) == text


def test_parts_that_can_be_scored_are_those_of_the_command() -> None:
    assert get_args(Scored) == SCORED
    with pytest.raises(InputError, match="scored must be one of last, user_turns, all, got 'user'"):
        Conversations("user")  # pyright: ignore[reportArgumentType]


def test_text_of_conversations_without_any() -> None:
    read = Conversations().text
    assert read([{"role": "user", "content": [IMAGE]}]) == ""
    assert read([{"role": "system", "content": "only"}]) == "only"
    assert read([{"role": "user", "content": "half \ud83d"}]) == "half \ufffd"
    assert Conversations("last", ["l"]).text([{"role": "user", "content": "half \ud83d"}]) == "haf \ufffd"
    assert read([{"role": "user", "content": " as it is\n"}]) == " as it is\n"
