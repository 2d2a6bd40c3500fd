"""Users without a home, in containers say: caches are for what is computed again, and nothing fails without them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from routerjax import save_router
from routerjax.cli import main
from routerjax.data import read_preferences
from routerjax.tables import read_table, write_table
from tests.routers import tiny_router, tiny_text_router

PAIR = ("--strong", "sim-large", "--weak", "sim-small")


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUTERJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def require_no_word_of_a_cache(caplog: pytest.LogCaptureFixture) -> None:
    messages = [record.message for record in caplog.records if record.name.startswith("routerjax")]
    assert not [message for message in messages if "cache" in message]


def score(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\nwrite a poem\nprove it\n")
    run("score", folder, "--input", tmp_path / "prompts.csv", "--output", tmp_path / "scored.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert all(0 <= row["win_prob"] <= 1 for row in rows)
    assert len(rows) == 2


def test_given_embeddings_are_trained_on(arena: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = len(read_preferences(arena / "battles.parquet").unique_prompts)
    np.save(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((count, 5)).astype(np.float32))
    (tmp_path / "e.npy.json").write_text('{"fingerprint": "made up"}')
    settings = [f"features.embeddings={tmp_path / 'e.npy'}", "router.family=knn", "router.attributes={'k': 5}"]
    run("train", arena / "config.py", "--set", *settings, "--output", tmp_path / "run")
    require_no_word_of_a_cache(caplog)


def test_a_router_that_reads_text_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_router(tiny_text_router(tmp_path), tmp_path / "router")
    score(tmp_path / "router", tmp_path)
    require_no_word_of_a_cache(caplog)


def test_given_scores_are_evaluated(arena: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    benchmark = arena / "benchmark.parquet"
    prompts = list(dict.fromkeys(read_table(benchmark, columns=["prompt"]).column("prompt").to_pylist()))
    scores = pa.table({"prompt": prompts, "win_prob": np.linspace(0, 1, len(prompts))})
    write_table(scores, str(tmp_path / "scores.parquet"))
    evaluate = ["evaluate", "--benchmark", benchmark, *PAIR, "--samples", 10, "--output", tmp_path / "evaluated"]
    run(*evaluate, "--scores", tmp_path / "scores.parquet")
    assert (tmp_path / "evaluated" / "report.html").is_file()
    require_no_word_of_a_cache(caplog)


def test_what_a_cache_would_keep_is_computed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_router(tiny_router(tmp_path), tmp_path / "router")
    score(tmp_path / "router", tmp_path)
    assert caplog.text.count("embeddings are not kept; set ROUTERJAX_CACHE to a folder that can be written") == 1
