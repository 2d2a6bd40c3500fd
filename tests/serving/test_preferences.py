"""Logged decisions and feedback, which are read as battles."""

import hashlib
import json
from pathlib import Path

import pytest

from routerjax import InputError, Router, data
from routerjax.serving.preferences import PreferenceLog
from routerjax.serving.text_scoring import RouterScorer
from tests.serving.servers import serving, settings
from tests.serving.upstream import Upstream, fails

ID = "x-routerjax-request-id"


def test_feedback_is_read_as_battles(small_router: Router, big: Upstream, small: Upstream, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = PreferenceLog(path, RouterScorer(small_router), with_text=True)
    with serving(small_router, tmp_path, settings(big, small), preferences=log, log_text=True) as started:
        answers = {prompt: started.chat(prompt, "router-0") for prompt in ("one", "two\n\u202e", "three", "four")}
        big.answers += [fails(500)] * 2
        answers["five"] = started.chat("five", "router-0")
        answers["six"] = started.client.post("/route", json={"prompt": "six"})
        ids = {prompt: answer.headers[ID] for prompt, answer in answers.items()}
        for prompt, winner in (
            *(("one", "small"), ("two\n\u202e", "small"), ("three", "tie"), ("six", "both_bad")),
            *(("one", "big"), ("five", "small")),
        ):
            answer = started.client.post("/feedback", json={"request_id": ids[prompt], "winner": winner})
            assert (answer.status_code, answer.json()) == (200, {"status": "recorded"})
        for fields, status in (
            ({"request_id": "0" * 32, "winner": "big"}, 404),
            ({"request_id": ids["four"], "winner": "medium"}, 400),
            ({"request_id": ids["four"]}, 400),
            ({"request_id": [], "winner": "big"}, 404),
            ({"request_id": ids["four"], "winner": "big", "models": ["big", "big"]}, 400),
            ({"request_id": ids["four"], "winner": "big", "rating": 1}, 400),
        ):
            answer = started.client.post("/feedback", json=fields)
            assert answer.status_code == status, fields
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert started.record(answers["one"])["text"] == "one"
    log.close()
    battles = data.read_preferences(path)
    prompts = [battles.unique_prompts[row] for row in battles.prompt_index]
    assert prompts == ["two\n\u202e", "three", "six", "one", "five"]  # the last feedback on a request counts
    assert battles.models == ("big", "small")
    assert battles.outcome.argmax(axis=1).tolist() == [2, 1, 3, 0, 2]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (five,) = [line for line in lines if line.get("prompt") == "five"]
    assert (five["chosen"], five["answered_by"], five["threshold"]) == ("big", "small", 0.0)


def test_hashes_alone_are_no_battles(small_router: Router, big: Upstream, small: Upstream, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = PreferenceLog(path, RouterScorer(small_router))
    with serving(small_router, tmp_path, settings(big, small), preferences=log) as started:
        request_id = started.chat("a secret").headers[ID]
        feedback = {"request_id": request_id, "winner": "medium", "models": ["medium", "big"]}
        assert started.client.post("/feedback", json=feedback).status_code == 200
        assert "secret" not in started.log.getvalue()
    log.close()
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["prompt_sha256"] == hashlib.sha256(b"a secret").hexdigest()
    assert "secret" not in path.read_text()
    assert (second["model_a"], second["model_b"], second["winner"]) == ("medium", "big", "model_a")
    with pytest.raises(InputError, match=r"log\.jsonl has no battles: .* 1 without a prompt that has text: serve with"):
        data.read_preferences(path)


def test_a_restart_goes_on_with_the_file(
    small_router: Router, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    decision = {"event": "decision", "request_id": "a", "prompt": "x"}
    whole = json.dumps(decision).encode()
    feedback = {"request_id": "a", "winner": "small"}
    for content, kept in (
        (whole + b"\n", whole + b"\n"),
        (whole, whole + b"\n"),
        (whole + b'\n{"event": "decis', whole + b"\n"),
    ):
        path.write_bytes(content)
        log = PreferenceLog(path, RouterScorer(small_router))
        with pytest.raises(InputError, match=r"log\.jsonl is in use: another process logs preferences to it"):
            PreferenceLog(path, RouterScorer(small_router))
        log.write_feedback(feedback)
        log.close()
        assert path.read_bytes().startswith(kept + b'{"event": "feedback", "request_id": "a"')
        assert len(data.read_preferences(path)) == 1
    assert caplog.messages == [f"{path}: its last line was cut short, 16 bytes of it are taken away"]
    others = (b'{"prompt": "x"}\n', b"nothing\n", whole + b"\n\x00\n" + whole + b"\n")
    ends = (
        b"nothing",
        b'{"prompt": "x"}',
        b'{"prompt": "',
        whole + b"\nnothing",
        b"\x00",
        b'{"event": ' + b"[" * 10_000,
    )  # of files without a last end
    for content in (*others, *ends):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"log\.jsonl: line "):
            PreferenceLog(path, RouterScorer(small_router))
        assert path.read_bytes() == content


def test_a_file_that_training_would_not_read_is_refused(small_router: Router, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.jsonl, .* got .*log\.json$"):
        PreferenceLog(tmp_path / "log.json", RouterScorer(small_router))
    assert not list(tmp_path.iterdir())


def test_prompts_that_clients_send_do_not_spoil_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = ("", " \n", "half \ud83d", "a\0b", "whole")
    lines = [{"event": "decision", "request_id": str(row), "prompt": prompt} for row, prompt in enumerate(prompts)]
    battle = {"model_a": "big", "model_b": "small", "winner": "model_a"}
    lines += [{"event": "feedback", "request_id": str(row), **battle} for row in range(len(prompts))]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(data.read_preferences(path).unique_prompts) == {"half \ufffd", "a\0b", "whole"}
    assert "2 of 5 battles are left out, whose prompt is not in it, or empty" in caplog.text
