"""Runs whose encoder has other modules than most: trained with its own pooling and prompt, or refused by name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from routerjax import InputError, features, load_router, training
from routerjax.config import ExperimentConfig, override
from routerjax.pipeline import load_config, train_router
from routerjax.training import FitResult
from routerjax.typing import Variables
from tests.encoders import TEXTS, save_modules


@pytest.fixture(scope="module")
def config(arena: Path) -> ExperimentConfig:
    return override(load_config(arena / "config.py"), ["router.attributes={}", "features.max_length=16"])


def _copied_encoder(
    config: ExperimentConfig, folder: Path, types: dict[str, str], **pooling: object
) -> ExperimentConfig:
    """Copy the encoder, with other modules or another pooling."""
    shutil.copytree(config.features.encoder, folder)
    save_modules(folder, types)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return override(config, [f"features.encoder={folder}"])


def _untrained(*_: object, variables: Variables, **__: object) -> FitResult:
    state: Any = None
    return FitResult(variables, state, 1, 0.5, ())


def test_an_encoder_whose_modules_are_not_computed_can_be_trained_without_the_control(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_LSTM": "LSTM"}
    config = _copied_encoder(config, tmp_path / "encoder", types)
    monkeypatch.setattr(training, "fit", _untrained)
    with caplog.at_level("INFO", "routerjax"):
        router = train_router(override(config, ["router.family=bert"]), tmp_path / "run")
    refusal = r"modules\.json: a module of type LSTM is not computed here"
    assert len(re.findall(rf"no nearest-neighbour control: .*{refusal}", caplog.text)) == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "router"}
    np.testing.assert_array_equal(load_router(tmp_path / "run" / "router").win_prob(TEXTS), router.win_prob(TEXTS))
    with pytest.raises(InputError, match=refusal):
        train_router(override(config, ["features.train_encoder=True"]), tmp_path / "mf")
    with pytest.raises(InputError, match=refusal):
        train_router(config, tmp_path / "frozen")


def test_a_trained_encoder_keeps_its_pooling_and_prompt(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    config = _copied_encoder(config, tmp_path / "encoder", types, pooling_mode=["cls", "mean"])
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "encoder" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (tmp_path / "encoder" / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    monkeypatch.setattr(training, "fit", _untrained)
    router = train_router(override(config, ["features.train_encoder=True"]), tmp_path / "run")
    loaded = load_router(tmp_path / "run" / "router")
    np.testing.assert_array_equal(loaded.win_prob(TEXTS), router.win_prob(TEXTS))
    # Untrained, it makes the embeddings of the frozen encoder.
    encoder = features.load_encoder(tmp_path / "encoder", max_length=config.features.max_length).encoder
    assert encoder.module == loaded.featurizer.embedding
    assert encoder.tokenizer.fingerprint == loaded.featurizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"]["encoder"], encoder.variables["params"])
    save_modules(tmp_path / "encoder", {**types, "2_Dense": "Dense"})
    (tmp_path / "encoder" / "2_Dense").mkdir()
    (tmp_path / "encoder" / "2_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 8}')
    with pytest.raises(InputError, match=r"2_Dense: a projection after the pooling is not trained with the encoder"):
        train_router(override(config, ["features.train_encoder=True"]), tmp_path / "mf")
