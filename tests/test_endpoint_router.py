"""From battles to win probabilities of text, with embeddings that a server makes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, data, formats, load_router, save_router
from routerjax.cli import main
from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    FeatureConfig,
    RouterConfig,
    TrainingConfig,
)
from routerjax.features import Embeddings, EndpointFeaturizer
from routerjax.pipeline import train_router
from tests.endpoint import EndpointServer, embeddings_of
from tests.routers import tiny_router

ENDPOINT = EndpointFeaturizer(source="openai:tiny", fingerprint="openai:tiny at http://host/v1", known_width=16)

PROMPTS = ["What is a monad?", "hi"]
SECRET = "sk-marker-of-the-environment"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTERJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)


def test_train_save_load_and_score_through_an_endpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    caplog.set_level("INFO", "routerjax")
    arena = data.simulate_arena(num_prompts=60, num_test_prompts=1, seed=0)
    data.write_preferences(arena.preferences, tmp_path / "battles.parquet")
    config = ExperimentConfig(
        data=DataConfig(root=str(tmp_path), battles=(BattleSource(path="battles.parquet"),)),
        features=FeatureConfig(encoder="openai:tiny?dimensions=8", dollars_per_million_tokens=20.0),
        router=RouterConfig(family="mf", strong=str(arena.benchmark.strong), weak=str(arena.benchmark.weak)),
        training=TrainingConfig(epochs=1, batch_size=32),
    )
    with EndpointServer() as server:
        server.key = SECRET
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        trained = train_router(config, tmp_path / "run")
        assert server.sizes == [60]
        assert any("tokens used, $0.0" in message for message in caplog.messages)
        assert (trained.featurizer.kind, trained.featurizer.width) == ("endpoint", 8)
        train_router(config, tmp_path / "again")
        assert len(server.requests) == 1  # the cache has them all

        router = load_router(tmp_path / "run" / "router")
        assert router.featurizer == trained.featurizer
        win_prob = router.win_prob(PROMPTS)
        assert server.requests[-1]["input"] == PROMPTS
        assert server.requests[-1]["dimensions"] == 8
        given = Embeddings(embeddings_of(PROMPTS, 8), f"openai:tiny?dimensions=8 at {server.base_url}")
        np.testing.assert_array_equal(win_prob, trained.win_prob(given))

        (tmp_path / "prompts.jsonl").write_text('{"prompt": "What is a monad?"}\n{"prompt": "hi"}\n')
        command = ["score", str(tmp_path / "run"), "--input", str(tmp_path / "prompts.jsonl")]
        assert main([*command, "--output", str(tmp_path / "scores.parquet")]) == 0
        assert main([*command, "--output", str(tmp_path / "scores.jsonl")]) == 0
        assert server.sizes == [60, 2, 2]  # the second found the first's embeddings

        echoed = server.error(401, f"the key {SECRET} is not known")
        server.script = [lambda body: echoed]
        (tmp_path / "new.jsonl").write_text('{"prompt": "never seen"}\n')
        assert main(["score", str(tmp_path / "run"), "--input", str(tmp_path / "new.jsonl")]) == 2
        # Runs, routers, tables, the cache, logs and the terminal.
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        captured = capsys.readouterr()
        assert "the key [key] is not known" in captured.err
        assert not any(SECRET.encode() in content for content in written)
        assert SECRET not in captured.out + captured.err + caplog.text

        server.script = ["wide"]
        with pytest.raises(InputError, match="must be 8 wide, got 7"):
            load_router(tmp_path / "run" / "router").win_prob(PROMPTS)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere:8000/v1")
    refused = (
        r"refused: the encoder openai:tiny\?dimensions=8 has fingerprint openai:tiny\?dimensions=8 at http://elsewhere:"
        rf"8000/v1, but .* at {server.base_url}; .*; OPENAI_BASE_URL must be the address"
    )
    with pytest.raises(InputError, match=refused):
        load_router(tmp_path / "run" / "router").win_prob(PROMPTS)


def test_an_endpoint_does_not_stand_in_for_an_encoder_nor_the_reverse(tmp_path: Path) -> None:
    local = tiny_router(tmp_path)
    with pytest.raises(InputError, match="no folder openai:tiny"):
        local.featurizer.at("openai:tiny").query(PROMPTS)
    with pytest.raises(InputError, match=r"features \(endpoint\) take no encoder but their own, got encoder: leave"):
        ENDPOINT.at("encoder")


def test_the_bundle_of_an_endpoints_router_takes_embeddings(tmp_path: Path) -> None:
    local = tiny_router(tmp_path)
    save_router(dataclasses.replace(local, featurizer=ENDPOINT), tmp_path / "router")
    router = load_router(tmp_path / "router")
    assert set(formats.export(router, tmp_path / "bundle", "stablehlo")) == {"from_embedding"}
    with pytest.raises(InputError, match="exported for embeddings, not text"):
        formats.export(router, tmp_path / "other", "stablehlo", prompts=PROMPTS)
