"""Hugging Face folders of the BERT family: configuration, shards, heads that are not there."""

import codecs
import json
import logging
import math
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError
from routerjax.families import BERT, pretrained_params
from routerjax.features import load_encoder, load_tokens
from routerjax.pretrained import bert_names, publish_weights, read_bert_config, read_bert_encoder
from routerjax.typing import PyTree
from tests.encoders import save_tiny_encoder

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")
KEY = jax.random.key(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_encoder(tmp_path / "tiny")


def load_bert(folder: Path, *, key: jax.Array | None = None, num_models: int = 2, head: str = "architecture") -> PyTree:
    """Parameters of a router of so many models that reads text with the folder's encoder."""
    module = BERT.make_module(num_outputs=num_models, attributes={"head": head}, featurizer=load_tokens(folder))
    return pretrained_params(module, folder, key=key)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_two_tensors_share_a_name(model_type: str) -> None:
    table = bert_names(model_type, head=True).table
    assert len(set(table.values())) == len(table)
    assert set(bert_names(model_type, head=False).table) < set(table)


def test_the_configuration_is_read_and_written(folder: Path, tmp_path: Path) -> None:
    change_config(folder, id2label={"0": "strong", "1": "tie", "2": "weak"}, classifier_dropout=0.3, pad_token_id=0)
    config = read_bert_config(folder)
    assert config.labels == ("strong", "tie", "weak")
    assert config.classifier_dropout_rate == 0.3
    assert (config.encoder["width"], config.encoder["attention_dropout_rate"]) == (16, 0.1)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert read_bert_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_eps": math.nan}, "layer_norm_eps must be a non-negative number, got nan"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a non-negative number, got None"),
        ({"hidden_act": "gelu_new"}, "hidden_act must be 'gelu', got 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, "is_decoder must be False"),
        ({"hidden_size": "16"}, "hidden_size must be a non-negative whole number, got '16'"),
        (
            {"hidden_dropout_prob": 1.5},
            "config.json: hidden_dropout_prob must be .*number below 1, got 1.5",
        ),
        ({"intermediate_size": 0}, "config.json: encoder.mlp_dim must be an integer in .*, got 0"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 16"),
    ],
)
def test_what_the_encoder_is_not_is_refused(folder: Path, changes: dict, message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_bert(folder, key=KEY)


@pytest.mark.parametrize(
    "changes", [{"id2label": {"0": None}}, {"id2label": {"0": "a", "2": "b"}}, {"classifier_dropout": 1}]
)
def test_what_is_of_a_classifier_does_not_stop_an_encoder(folder: Path, changes: dict) -> None:
    expected, params = load_encoder(folder, max_length=32), load_bert(folder, key=KEY)
    change_config(folder, **changes)
    assert load_encoder(folder, max_length=32) == expected
    jax.tree.map(np.testing.assert_array_equal, load_bert(folder, key=KEY), params)


@pytest.mark.parametrize(
    "model_type", ["modernbert", "deberta-v2", "nomic_bert", "albert", "robertas", "t5", None, 7, ["bert"]]
)
def test_another_architecture_is_refused_and_none_is_suggested(folder: Path, model_type: object) -> None:
    change_config(folder, model_type=model_type)
    known = r"config\.json: model_type must be one of bert, roberta, [-a-z, ]*"
    with pytest.raises(InputError, match=rf"{known}, got {re.escape(repr(model_type))}$"):
        read_bert_config(folder)


def test_what_a_configuration_leaves_out_is_as_in_transformers_and_said(folder: Path, caplog) -> None:
    whole = json.loads((folder / "config.json").read_text())
    expected = read_bert_config(folder)
    optional = ("layer_norm_eps", "initializer_range", "type_vocab_size", "hidden_dropout_prob", "pad_token_id")
    kept = {key: value for key, value in whole.items() if key not in (*optional, "hidden_act")}
    (folder / "config.json").write_text(json.dumps(kept))
    with caplog.at_level(logging.INFO):
        assert read_bert_config(folder) == expected  # a classifier is read after its encoder: said once of both
        assert read_bert_encoder(folder) == expected.encoder
    assert 'leaves out {"type_vocab_size": 2, "pad_token_id": 0, "hidden_dropout_prob": 0.1, "layer_norm_eps"' in (
        caplog.text
    )
    assert caplog.text.count("leaves out") == 1
    # DistilBERT's sizes go by BERT's names too.
    change_config(folder, model_type="distilbert")
    assert read_bert_config(folder).encoder["width"] == 16
    assert read_bert_config(folder).encoder["mlp_dim"] == 3072
    assert read_bert_config(folder).classifier_dropout_rate == 0.2


def save_tensor(path: Path, dtype: str, size: int) -> None:
    """A safetensors file with one tensor of a type that numpy may not have."""
    header = json.dumps({"embeddings.LayerNorm.bias": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(size))


@pytest.mark.parametrize(("dtype", "size"), [("I8", 8), ("U8", 8), ("I32", 32), ("F8_E4M3", 8), ("F8_E5M2", 8)])
def test_weights_that_are_no_floats_are_refused_as_quantised(folder: Path, dtype: str, size: int) -> None:
    save_tensor(folder / "model.safetensors", dtype, size)
    with pytest.raises(InputError, match=rf"got embeddings\.LayerNorm\.bias \({dtype}\), one of 1; quantised weights"):
        load_bert(folder, key=KEY)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_called_so(folder: Path, file: str) -> None:
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90\n")
    with pytest.raises(InputError, match=rf"{re.escape(file)} is a Git LFS pointer, not the file itself: run git lfs"):
        load_bert(folder, key=KEY)


def test_a_byte_order_mark_changes_nothing(folder: Path) -> None:
    change_config(folder, id2label={"0": "a", "1": "b"})
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    config, tokens, params = read_bert_config(folder), load_tokens(folder), load_bert(folder, key=KEY)
    for path in folder.rglob("*.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_bert_config(folder) == config
    assert load_tokens(folder).files == tokens.files  # of which routers and exports are made, for others to read
    jax.tree.map(np.testing.assert_array_equal, load_bert(folder, key=KEY), params)
    spec, embedding = load_encoder(folder, max_length=32), load_encoder(folder, max_length=32).encode(["x"])
    for path in folder.rglob("*.json"):
        path.write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    assert load_encoder(folder, max_length=32) == spec
    np.testing.assert_array_equal(load_encoder(folder, max_length=32).encode(["x"]), embedding)


def test_a_head_that_is_not_there_is_drawn_from_the_key_and_named(folder: Path, caplog) -> None:
    with pytest.raises(InputError, match=r"- classifier/kernel; - classifier/bias|- classifier/bias; - classifier/ker"):
        load_bert(folder)
    with caplog.at_level(logging.WARNING):
        loaded = load_bert(folder, num_models=3, key=KEY)
    assert "gives no classifier/bias, classifier/kernel: initialised at random" in caplog.text
    kernel = loaded["classifier"]["kernel"]
    assert kernel.shape == (16, 3)
    assert 0.01 < kernel.std() < 0.04
    again = load_bert(folder, num_models=3, key=jax.random.key(1))
    assert np.abs(again["classifier"]["kernel"] - kernel).max() > 0.01
    # The pooler is in the file.
    pooler = safetensors.numpy.load_file(folder / "model.safetensors")["pooler.dense.weight"]
    np.testing.assert_array_equal(loaded["dense"]["kernel"], pooler.T)


def test_half_a_head_is_damage(folder: Path) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file({**tensors, "classifier.bias": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r": - classifier/kernel$"):
        load_bert(folder)
    assert set(load_bert(folder, head="linear", key=KEY)) == {"encoder", "classifier"}
    safetensors.numpy.save_file(
        {name: leaf for name, leaf in tensors.items() if name != "pooler.dense.weight"}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match=r": - dense/kernel$"):
        load_bert(folder, key=KEY)


def test_a_classifier_of_other_labels_is_trained_anew_and_the_rest_of_its_head_kept(folder: Path, caplog) -> None:
    plain = load_bert(folder, num_models=3, key=KEY)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for labels in (2, 3):  # a head of another size, and one that would fit by accident
        head = {"classifier.weight": np.ones((labels, 16), np.float32), "classifier.bias": np.ones(labels, np.float32)}
        safetensors.numpy.save_file({**tensors, **head}, folder / "model.safetensors")
        caplog.clear()
        jax.tree.map(np.testing.assert_array_equal, load_bert(folder, num_models=3, key=KEY), plain)
        assert "gives no classifier/bias, classifier/kernel: initialised at random" in caplog.text
    np.testing.assert_array_equal(load_bert(folder, num_models=3)["classifier"]["kernel"], 1)


def test_shards_are_one_file(folder: Path) -> None:
    single = load_bert(folder, key=KEY)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no model.safetensors and no model.safetensors.index.json"):
        load_bert(folder, key=KEY)
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, members in parts.items():
        safetensors.numpy.save_file({name: tensors[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, load_bert(folder, key=KEY), single)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"tiny is incomplete: no model-00002-of-00003.safetensors, which its"):
        load_bert(folder, key=KEY)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"model.safetensors.index.json must hold a JSON object, got \[\]"):
        load_bert(folder, key=KEY)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(InputError, match=r"model.safetensors.index.json is damaged: weight_map must map tensors"):
        load_bert(folder, key=KEY)


def test_names_of_the_first_checkpoints(folder: Path) -> None:
    expected = load_bert(folder, key=KEY)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): leaf
        for name, leaf in tensors.items()
    }
    old |= {"cls.seq_relationship.bias": np.zeros(2), "bert.embeddings.position_ids": np.arange(64)[None]}
    safetensors.numpy.save_file(old, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_bert(folder, key=KEY), expected)
    safetensors.numpy.save_file({**old, "embeddings.LayerNorm.bias": np.zeros(16)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"\+ (bert\.)?embeddings\.LayerNorm\."):
        load_bert(folder, key=KEY)


def test_a_parameter_without_a_published_name_is_refused() -> None:
    with pytest.raises(InputError, match="the parameter encoder/extra has no name in the published format"):
        publish_weights({"encoder": {"extra": np.zeros(2)}}, bert_names("bert", head=True))


def test_bad_arguments(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 5}))
    with pytest.raises(InputError, match=r"the tokenizer has the token id \d+, the encoder only 5 tokens"):
        load_bert(folder, key=KEY)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is not a tokenizer"):
        load_bert(folder, key=KEY)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer: expected tokenizer\.json, vocab\.txt"):
        load_bert(folder, key=KEY)


@pytest.mark.parametrize(
    ("model_type", "padding_id", "class_name"),
    [
        ("bert", 0, "BertForSequenceClassification"),
        ("roberta", 1, "RobertaForSequenceClassification"),
        ("xlm-roberta", 1, "XLMRobertaForSequenceClassification"),
        ("distilbert", 0, "DistilBertForSequenceClassification"),
    ],
)
def test_what_architectures_do_not_share(folder: Path, model_type: str, padding_id: int, class_name: str) -> None:
    distilbert = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "dropout": 0.1, "attention_dropout": 0.1}
    change_config(folder, model_type=model_type, **(distilbert if model_type == "distilbert" else {}))
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: whole[key] for key in whole if key != "pad_token_id"}))
    config = read_bert_config(folder)
    assert config.encoder["padding_id"] == padding_id
    assert config.encoder["num_token_types"] == (0 if model_type == "distilbert" else 2)
    assert config.to_json()["architectures"] == [class_name]
    head = {"distilbert": "pre_classifier", "bert": "bert.pooler.dense"}.get(model_type, "classifier.dense")
    assert bert_names(model_type, head=True).table[f"{head}.weight"] == "dense/kernel"
