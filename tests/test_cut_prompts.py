"""Prompts that are cut, and different prompts that become one input, are said by whatever reads prompts."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from routerjax import InputError, Router, features
from routerjax.cli import main
from routerjax.config import FeatureConfig, Truncation
from routerjax.formats import export
from routerjax.router import load_router, save_router
from routerjax.tables import write_table
from tests.encoders import TEXTS, save_tiny_encoder
from tests.routers import tiny_router, tiny_text_router

PREAMBLE = "write a poem " * 30
LONG = [f"{PREAMBLE} {TEXTS[row % 3]} {row}" for row in range(10)]
CUT = "10 of 12 prompts were cut at {length} tokens: the end of them was not read; 10 different prompts became one"


@pytest.fixture(params=["sentence encoder", "token router"])
def router(request: pytest.FixtureRequest, tmp_path: Path) -> Router:
    return tiny_router(tmp_path) if request.param == "sentence encoder" else tiny_text_router(tmp_path)


def test_every_reading_says_what_was_cut(router: Router, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [*LONG, TEXTS[0], TEXTS[1], *LONG[:3]]  # those that come twice count once
    with features.EmbeddingCache(tmp_path / "cache.sqlite") as cache, caplog.at_level("INFO", "routerjax"):
        for _ in range(2):  # the second time from the cache
            win_prob = router.win_prob(prompts, cache=cache)
            assert len(set(win_prob[:10].tolist())) == 1
            assert caplog.text.count(CUT.format(length=48)) == 1
            caplog.clear()
        router.win_prob(TEXTS, cache=cache)
        assert caplog.text == ""
        router.win_prob(["a  poem", "A poem"], cache=cache)
        assert "2 different prompts became one and the same input, which the tokenizer does not tell" in caplog.text


def test_other_ends_are_read_by_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    encoders = {side: features.load_encoder(folder, max_length=48, truncation=side) for side in ("left", "middle")}
    assert (
        len({encoder.fingerprint for encoder in (*encoders.values(), features.load_encoder(folder, max_length=48))})
        == 3
    )
    with caplog.at_level(logging.WARNING, "routerjax"):
        for side, encoder in encoders.items():
            assert encoder.truncation == side
            assert len(np.unique(encoder.encode(LONG), axis=0)) == 10
    warning = "10 of 10 prompts were cut at 48 tokens: the {} of them was not read\n"
    assert warning.format("beginning") in caplog.text
    assert warning.format("middle") in caplog.text
    with pytest.raises(InputError, match=r"features.truncation='left' cannot be followed by openai:any"):
        features.open_featurizer(FeatureConfig(encoder="openai:any", truncation="left"))


def test_one_prompt_is_said_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    router = tiny_text_router(tmp_path)
    router.win_prob(LONG[:1])
    assert "1 of 1 prompt was cut at 48 tokens: the end of it was not read\n" in caplog.text
    router.win_prob([TEXTS[0], LONG[0]])
    assert "1 of 2 prompts was cut at 48 tokens: the end of it was not read\n" in caplog.text


@pytest.mark.parametrize("truncation", ["left", "middle"])
def test_routers_and_bundles_keep_the_choice(tmp_path: Path, truncation: Truncation) -> None:
    router = tiny_text_router(tmp_path)
    router = dataclasses.replace(router, featurizer=dataclasses.replace(router.featurizer, truncation=truncation))
    save_router(router, tmp_path / "saved")
    loaded = load_router(tmp_path / "saved")
    assert loaded.featurizer.truncation == truncation
    # Longer than is ever read: 1,000 characters a token.
    prompts = [*LONG[:4], f"{TEXTS[1]} {'x ' * 30_000} {TEXTS[2]}", TEXTS[0]]
    win_prob = loaded.win_prob(prompts)
    assert len(set(win_prob.tolist())) == len(prompts)
    # A process of the bundle's own scores these texts, and compares.
    assert export(loaded, tmp_path / "bundle", "stablehlo", prompts=prompts)["from_text"] <= 1e-5


def test_every_command_says_it(
    arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [*LONG, TEXTS[0], TEXTS[1]]
    battles = pa.table({"prompt": prompts, "model_a": ["sim-large"] * 12, "model_b": ["sim-small"] * 12})
    winners = ["model_a", "model_b"] * 6
    write_table(battles.append_column("winner", pa.array(winners)), str(tmp_path / "battles.parquet"))
    quality = {"model": ["sim-large"] * 12 + ["sim-small"] * 12, "score": [1.0] * 12 + [0.0, 0.5] * 6}
    write_table(pa.table({"prompt": prompts * 2, **quality}), str(tmp_path / "benchmark.parquet"))
    config = [str(arena / "config.py"), "--set", f"data.root={tmp_path}", "router.family=knn", "router.attributes={}"]
    config += ["data.validation_fraction=0.0"]
    battles_file = str(tmp_path / "battles.parquet")
    table, calibrated = str(tmp_path / "benchmark.parquet"), str(arena / "calibrated")
    pair = ["--strong", "sim-large", "--weak", "sim-small", "--samples", "10"]
    for command in (
        ["train", *config, "--output", str(tmp_path / "run")],
        ["score", calibrated, "--input", battles_file],
        ["calibrate", calibrated, "--prompts", battles_file, "--strong-share", "0.5"],
        ["evaluate", calibrated, "--benchmark", table, *pair, "--output", str(tmp_path / "evaluated")],
    ):
        assert main(command) == 0, capsys.readouterr().err
        assert CUT.format(length=32) in caplog.text, command[0]
        caplog.clear()
