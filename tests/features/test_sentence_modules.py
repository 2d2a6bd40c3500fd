"""Folders of sentence-transformers: each module is computed as the files say, in any spelling, or refused by name."""

import json
import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, features
from tests.encoders import TEXTS, WIDTH, change_json, save_modules, save_tiny_encoder

ALL_POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
PLAIN = {"": "Transformer", "1_Pooling": "Pooling"}
DENSE = {"in_features": 6 * WIDTH, "out_features": 8, "activation_function": "torch.nn.modules.activation.Sigmoid"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_encoder(tmp_path / "tiny")


def load(folder: Path, **arguments) -> features.SentenceFeaturizer:
    return features.load_encoder(folder, **{"max_length": 32, **arguments})


def write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def add_layers(folder: Path) -> dict[str, np.ndarray]:
    """All poolings, then a dense layer, a norm and unit length."""
    write(folder / "1_Pooling" / "config.json", {"embedding_dimension": WIDTH, "pooling_mode": ALL_POOLINGS})
    save_modules(folder, {**PLAIN, "2_Dense": "Dense", "3_LayerNorm": "LayerNorm", "4_Normalize": "Normalize"})
    write(folder / "2_Dense" / "config.json", DENSE)
    write(folder / "3_LayerNorm" / "config.json", {"dimension": 8})
    rng = np.random.default_rng(0)
    dense = {"linear.weight": rng.standard_normal((8, 6 * WIDTH)), "linear.bias": rng.standard_normal(8)}
    norm = {"norm.weight": rng.standard_normal(8), "norm.bias": rng.standard_normal(8)}
    for name, tensors in (("2_Dense", dense), ("3_LayerNorm", norm)):
        float32_tensors = {key: leaf.astype(np.float32) for key, leaf in tensors.items()}
        safetensors.numpy.save_file(float32_tensors, folder / name / "model.safetensors")
    return dense | norm


def test_every_pooling_and_layer_equals_numpy(folder: Path) -> None:
    tensors = add_layers(folder)
    encoder = load(folder)
    assert encoder.width == 8
    query = encoder.tokenize(TEXTS)
    hidden = jax.jit(encoder.encoder.module.encoder.clone(parent=None).apply)(
        {"params": encoder.encoder.variables["params"]["encoder"]}, query
    )
    expected = []
    for row, mask in zip(np.asarray(hidden, float), query["attention_mask"], strict=True):
        tokens = row[mask > 0]
        place = np.arange(1, len(tokens) + 1)
        mean, weighted = tokens.mean(axis=0), place @ tokens / place.sum()
        pooled = np.concatenate([tokens[0], tokens.max(axis=0), mean, mean * len(tokens) ** 0.5, weighted, tokens[-1]])
        dense = 1 / (1 + np.exp(-(tensors["linear.weight"] @ pooled + tensors["linear.bias"])))
        norm = (dense - dense.mean()) / np.sqrt(dense.var() + 1e-5) * tensors["norm.weight"] + tensors["norm.bias"]
        expected.append(norm / np.linalg.norm(norm))
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_every_spelling_of_a_folder_is_the_same_encoder(folder: Path) -> None:
    add_layers(folder)
    expected = load(folder).fingerprint
    # Before 5.4, modes were switched on one by one.
    keys = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    old = {"word_embedding_dimension": WIDTH, **{f"pooling_mode_{key}": True for key in keys}}
    write(folder / "1_Pooling" / "config.json", old)
    assert load(folder).fingerprint == expected
    modules = json.loads((folder / "modules.json").read_text())
    types = {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    for module in modules:
        module["type"] = types[module["type"].rpartition(".")[2]]
    write(folder / "modules.json", modules)
    write(folder / "4_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    assert load(folder).fingerprint == expected
    # The old layout: the encoder has a folder of its own too, whatever that is called.
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.move(folder / name, folder / "0_Transformer" / name)
    modules[0]["path"] = "0_Transformer"
    shutil.move(folder / "1_Pooling", folder / "pool")
    modules[1]["path"] = "pool"
    write(folder / "modules.json", modules)
    assert load(folder).fingerprint == expected


def test_whatever_changes_an_embedding_changes_the_fingerprint(folder: Path) -> None:
    add_layers(folder)

    def fingerprint() -> str:
        return load(folder).fingerprint

    fingerprints = [fingerprint()]
    assert fingerprint() == fingerprints[0]
    change_json(folder / "config.json", hidden_dropout_prob=0.3, initializer_range=0.1)  # of training alone
    assert fingerprint() == fingerprints[0]
    settings, transformer_settings = folder / "config_sentence_transformers.json", folder / "sentence_bert_config.json"
    for path, changes in (
        (folder / "config.json", {"num_attention_heads": 2}),
        (folder / "config.json", {"layer_norm_eps": 1e-5}),
        (folder / "1_Pooling" / "config.json", {"pooling_mode": ALL_POOLINGS[::-1]}),
        (folder / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.linear.Identity"}),
        (settings, {"prompts": {"query": "query: "}, "default_prompt_name": "query"}),
        (settings, {"prompts": {"query": "q: "}}),
        (transformer_settings, {"do_lower_case": True}),
    ):
        change_json(path, **changes)
        fingerprints.append(fingerprint())
    tensors = safetensors.numpy.load_file(folder / "2_Dense" / "model.safetensors")
    safetensors.numpy.save_file(
        {**tensors, "linear.bias": -tensors["linear.bias"]}, folder / "2_Dense/model.safetensors"
    )
    fingerprints.append(fingerprint())
    save_modules(folder, {**PLAIN, "2_Dense": "Dense", "3_LayerNorm": "LayerNorm"})
    fingerprints.append(fingerprint())
    assert len(set(fingerprints)) == len(fingerprints)


def test_the_default_prompt_and_lower_case_are_followed_and_another_length_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "tokenizer_config.json", {"do_lower_case": False})
    plain = load(folder)
    assert plain.tokenize(["PROVE"])["token_ids"].tolist() != plain.tokenize(["prove"])["token_ids"].tolist()
    prompts = {"prompts": {"query": "prove that: ", "document": ""}}
    write(folder / "config_sentence_transformers.json", {**prompts, "default_prompt_name": None})
    with caplog.at_level(logging.INFO):
        assert load(folder) == plain
    assert "has prompts that are not put before texts, as none is the default: query 'prove that: '" in caplog.text
    write(folder / "config_sentence_transformers.json", {**prompts, "default_prompt_name": "query"})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        followed = load(folder)
    assert "'prove that: ' is put before each text" in caplog.text
    assert f"{folder} is meant for 16 tokens, 32 are read" in caplog.text
    texts = ["Write A POEM", "", TEXTS[0]]
    np.testing.assert_array_equal(
        followed.encode(texts), plain.encode([f"prove that: {text}".lower() for text in texts])
    )
    caplog.clear()
    load(folder, max_length=16)
    assert "meant for" not in caplog.text


MODULES, POOLING = "modules.json", "1_Pooling/config.json"
SETTINGS, OWN = "config_sentence_transformers.json", "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (MODULES, ["Transformer", "Router"], "a module of type Router is not computed here; Transformer"),
        (MODULES, ["Transformer", "WeightedLayerPooling", "Pooling"], "a module of type WeightedLayerPooling is not"),
        (MODULES, ["StaticEmbedding"], "a module of type StaticEmbedding is not computed here"),
        (MODULES, ["Transformer", "Normalize"], "must begin with one Transformer and .* Transformer, Norm"),
        (MODULES, ["Transformer", "Dense", "Pooling"], "must begin with one Transformer and one Pooling module"),
        (MODULES, ["Transformer", "Pooling", "Pooling"], "must begin with one Transformer and one Pooling module"),
        (MODULES, [], "names no modules"),
        (MODULES, {"0": "Transformer"}, "must hold a JSON array"),
        (MODULES, [{"type": "sentence_transformers.models.Transformer"}], "each module must have a type and a path"),
        (MODULES, [{"type": "custom_st.Transformer", "path": ""}], "type custom_st.Transformer is not computed"),
        (MODULES, [{"type": "sentence_transformers.models.Transformer", "path": "../x"}], "must lie in the folder"),
        (POOLING, {"pooling_mode": "attention"}, "pooling must be by cls, max, mean, .* got .*attention"),
        (POOLING, {"pooling_mode": []}, "pooling must be by cls"),
        (POOLING, {"pooling_mode_first_last": True}, "pooling must be by cls.* got 'pooling_mode_first_last'"),
        (POOLING, None, "1_Pooling has no config.json"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name must be 'sentence_"),
        (OWN, {"do_lower_case": "yes"}, "do_lower_case must be of type bool, got 'yes'"),
        (OWN, {"transformer_task": "fill-mask"}, "transformer_task must be 'feature-"),
        ("sentence_xlnet_config.json", {"processing_kwargs": {"text": {"padding": True}}}, "processing_kwargs must be"),
        (SETTINGS, {"model_type": "SparseEncoder"}, "model_type must be 'SentenceTransformer'"),
        (SETTINGS, {"default_prompt_name": "query"}, r"default_prompt_name must be one of the prompts \(none\)"),
        (SETTINGS, {"default_prompt_name": ["query"]}, r"default_prompt_name must be one of the prompts \(none\)"),
        (SETTINGS, {"prompts": ["query: "]}, "prompts must map names to texts"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(folder: Path, file: str, content: object, message: str) -> None:
    if content is None:
        (folder / file).unlink()
    elif file == MODULES and isinstance(content, list) and content and isinstance(content[0], str):
        save_modules(folder, {str(place): name for place, name in enumerate(content)})
    else:
        write(folder / file, content)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "out_features must be a positive number, got None"),
        ({**DENSE, "activation_function": "torch.nn.modules.activation.PReLU"}, "activation_function must be one of"),
        ({**DENSE, "module_input_name": "token_embeddings"}, "module_input_name must be 'sentence_embedding'"),
        ({**DENSE, "use_residual": True}, "use_residual must be False, got 'True'"),
        ({**DENSE, "out_features": 9}, r"! linear.weight: expected shape \(96, 9\), got \(96, 8\)"),
        ({**DENSE, "activation_function": ["x"]}, r"activation_function must be one of .*got \['x'\]"),
        ({**DENSE, "bias": False}, r"2_Dense does not hold the expected tensors .* \+ linear.bias"),
    ],
)
def test_dense_layers_that_are_not_computed(folder: Path, config: dict, message: str) -> None:
    add_layers(folder)
    write(folder / "2_Dense" / "config.json", config)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_a_module_that_is_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "1_Pooling", tmp_path / "elsewhere")
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a module's path must lie in the folder, got '1_Pooling'"):
        load(folder)


def test_what_is_missing_is_named(folder: Path) -> None:
    add_layers(folder)
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))}/2_Dense holds no model.safetensors"):
        load(folder)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean", "include_prompt": false}')
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write(folder / "config_sentence_transformers.json", settings)
    with pytest.raises(InputError, match="a pooling that leaves the prompt 'query: ' out is not computed here"):
        load(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(InputError, match=r"has 1_Pooling/config.json but no modules.json: get it whole"):
        load(folder)
    shutil.rmtree(folder / "1_Pooling")
    assert load(folder).encoder.module.pooling == ("mean",)  # a plain encoder, as the library reads it


def test_embeddings_are_computed_in_full_precision_on_every_platform(folder: Path) -> None:
    from routerjax.features import sentence

    add_layers(folder)
    encoder = load(folder)
    lowered = sentence._embed.lower(*encoder.encoder[:2], encoder.tokenize(TEXTS)).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 12
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
