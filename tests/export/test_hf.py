"""Folders in Hugging Face's format, without transformers: what is in them, and that they are compared first."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, export
from routerjax.export import hf
from routerjax.router import BertClassifier, load_bert
from tests.encoders import save_tiny_encoder

LABELS = ("gpt-4", "mixtral")


@pytest.fixture
def classifier(tmp_path: Path) -> BertClassifier:
    return load_bert(save_tiny_encoder(tmp_path / "tiny"), labels=LABELS, key=jax.random.key(0))


def test_a_written_folder_is_read_back_bit_for_bit(classifier: BertClassifier, tmp_path: Path) -> None:
    assert export.export_hf(classifier, tmp_path / "out") == 0.0
    again = load_bert(tmp_path / "out")
    assert again.labels == LABELS
    assert again.module == classifier.module
    jax.tree.map(np.testing.assert_array_equal, again.variables, classifier.variables)
    assert again.tokenizer_files["tokenizer.json"] == classifier.tokenizer_files["tokenizer.json"]
    made = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert made["pad_token"] == "[PAD]"
    assert made["model_max_length"] == 64
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "gpt-4", "1": "mixtral"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    published = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in published if not name.startswith("bert.")} == {"classifier.weight", "classifier.bias"}
    assert export.export_hf(again, tmp_path / "twice") == 0.0
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_folder_with_other_scores_is_kept_aside(
    classifier: BertClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = hf.publish_weights

    def damaged(*arguments: object) -> dict:
        tensors = publish(*arguments)
        return {**tensors, "classifier.weight": tensors["classifier.weight"] + 0.1}

    monkeypatch.setattr(hf, "publish_weights", damaged)
    with pytest.raises(export.VerificationError, match=r"scores differ by .*kept as .*out\.rejected"):
        export.export_hf(classifier, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.rejected" / "model.safetensors").is_file()


def test_only_a_head_of_transformers_is_written_and_nothing_over_anything(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "tiny")
    linear = load_bert(folder, labels=LABELS, head="linear", key=jax.random.key(0))
    with pytest.raises(InputError, match="no classifier with the head 'linear'"):
        export.export_hf(linear, tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        export.export_hf(linear, folder)
