"""Folders in Hugging Face's format, without transformers: what is in them, and that they are compared first."""

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, Router, formats
from routerjax.cli import main
from routerjax.features import load_encoder
from routerjax.formats import hf
from routerjax.sealing import SEAL, seal
from tests.encoders import change_json, save_tiny_encoder
from tests.json_changes import changes
from tests.routers import tiny_router, tiny_text_router


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    return tiny_text_router(tmp_path_factory.mktemp("router"), threshold=0.4)


def test_a_written_folder_is_read_back_bit_for_bit(router: Router, tmp_path: Path) -> None:
    assert formats.export(router, tmp_path / "out", "hf")["model.safetensors"] == 0.0
    again = formats.read(tmp_path / "out", "hf")
    assert again.module == router.module
    for name in ("models", "policy", "likelihood"):
        assert getattr(again, name) == getattr(router, name)
    assert again.featurizer.fingerprint == router.featurizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, again.variables, router.variables)
    assert again.featurizer.files["tokenizer.json"] == router.featurizer.files["tokenizer.json"]
    made = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert made["pad_token"] == "[PAD]"
    assert made["model_max_length"] == 48
    assert made["truncation_side"] == "right"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "big", "1": "medium", "2": "small"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    published = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in published if not name.startswith("bert.")} == {"classifier.weight", "classifier.bias"}
    assert formats.export(again, tmp_path / "twice", "hf")["model.safetensors"] == 0.0
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert formats.read(tmp_path / "out", "hf", weak="medium").weak == "medium"


def test_it_is_a_sentence_encoder_too(router: Router, tmp_path: Path) -> None:
    formats.export(router, tmp_path / "out", "hf")
    encoder = load_encoder(tmp_path / "out", max_length=48)
    prompts = ["prove it", "a poem about primes"]
    query = encoder.tokenize(prompts)
    variables = {"params": router.variables["params"]["encoder"]}
    hidden = np.asarray(jax.jit(router.featurizer.encoder.apply)(variables, query))
    mask = query["attention_mask"][:, :, None]
    expected = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
    np.testing.assert_allclose(encoder.encode(prompts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [("three_outcome", ["big", "medium", "small", "tie"]), ("three_labels", ["big wins", "tie", "small wins"])],
)
def test_logits_of_outcomes_keep_their_loss(tmp_path: Path, loss: str, labels: list[str]) -> None:
    router = tiny_text_router(tmp_path, loss=loss, readout="win", threshold=math.inf)
    formats.export(router, tmp_path / "out", "hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == labels
    prompts = ["prove it", "a poem"]
    again = formats.read(tmp_path / "out", "hf")
    assert again.threshold == math.inf
    np.testing.assert_array_equal(again.win_prob(prompts), router.win_prob(prompts))
    np.testing.assert_array_equal(again.outcome_prob(prompts), router.outcome_prob(prompts))


@pytest.mark.parametrize("strong", ["big", "small"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_three_labels_are_in_the_order_in_which_routellm_reads_them(
    tmp_path: Path, strong: str, scan_layers: bool
) -> None:
    # Models of a run are in alphabetical order; which of them is the strong one is another matter.
    weak = {"big": "small", "small": "big"}[strong]
    chosen = {"scan_layers": scan_layers}
    router = tiny_text_router(tmp_path, loss="three_labels", readout="win", strong=strong, weak=weak, chosen=chosen)
    formats.export(router, tmp_path / "out", "hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == [f"{strong} wins", "tie", f"{weak} wins"]
    prompts = ["prove it", "a poem"]
    again = formats.read(tmp_path / "out", "hf")
    np.testing.assert_allclose(again.win_prob(prompts), router.win_prob(prompts), rtol=0, atol=1e-6)
    # RouteLLM's BERTRouter, which knows no names: 1 - (softmax[1] + softmax[2]).
    softmax = np.exp(again.scores(prompts)) / np.exp(again.scores(prompts)).sum(axis=1, keepdims=True)
    assert np.abs(softmax[:, 0] - softmax[:, 2]).min() > 1e-3
    np.testing.assert_allclose(1 - softmax[:, 1:].sum(axis=1), router.win_prob(prompts), rtol=0, atol=1e-6)


def test_a_folder_of_another_program_needs_the_pair(router: Router, tmp_path: Path) -> None:
    formats.export(router, tmp_path / "out", "hf")
    path = tmp_path / "out" / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name != "routerjax"}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="give --strong and --weak, two of its labels big, medium, small"):
        formats.read(tmp_path / "out", "hf")
    again = formats.read(tmp_path / "out", "hf", strong="medium", weak="big")
    np.testing.assert_array_equal(again.scores(["a poem"]), router.scores(["a poem"]))


def test_a_folder_with_other_scores_is_kept_aside(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = hf.publish_weights

    def damaged(*arguments: object) -> dict:
        tensors = publish(*arguments)
        return {**tensors, "classifier.weight": tensors["classifier.weight"] + 0.1}

    monkeypatch.setattr(hf, "publish_weights", damaged)
    with pytest.raises(formats.VerificationError, match=r"scores differ by .*kept as .*out\.rejected"):
        formats.export(router, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.rejected" / "model.safetensors").is_file()


def test_only_what_transformers_computes_is_written_and_nothing_over_anything(tmp_path: Path, router: Router) -> None:
    with pytest.raises(InputError, match="no classifier with the head 'linear'"):
        formats.export(tiny_text_router(tmp_path, attributes={"head": "linear"}), tmp_path / "out", "hf")
    with pytest.raises(InputError, match="no place for the loss davidson"):
        formats.export(tiny_text_router(tmp_path, loss="davidson"), tmp_path / "out", "hf")
    with pytest.raises(InputError, match=r"classifiers \(bert, causal\), got a router of family mf"):
        formats.export(tiny_router(tmp_path), tmp_path / "out", "hf")
    calibrated = dataclasses.replace(router, variables={**router.variables, "calibration": {}})
    with pytest.raises(InputError, match="no place for a calibration"):
        formats.export(calibrated, tmp_path / "out", "hf")
    with pytest.raises(InputError, match="exists already"):
        formats.export(router, tmp_path / "encoder", "hf")


def test_from_the_command_line_there_and_back(
    router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from routerjax import load_router, save_router

    save_router(router, tmp_path / "router")
    out, again = str(tmp_path / "out"), str(tmp_path / "again")
    assert main(["export", str(tmp_path / "router"), "--format", "hf", "--output", out]) == 0
    assert "scores differ from the router's by at most 0.0e+00" in capsys.readouterr().out
    assert main(["import", out, "--format", "hf", "--output", again]) == 0
    assert "it reads text: the first 48 tokens of a prompt" in capsys.readouterr().out
    prompts = ["what is the capital", "write a poem"]
    np.testing.assert_array_equal(load_router(again).win_prob(prompts), router.win_prob(prompts))


POLICY = {"name": "threshold", "strong": "big", "weak": "small", "threshold": 0.4}


@pytest.fixture(scope="module")
def written(router: Router, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    formats.export(router, folder / "out", "hf")
    return folder / "out"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policy": {**POLICY, "strong": 3}}, "threshold.strong must be text, got 3"),
        (
            {"policy": {**POLICY, "weak": "smal"}},
            r"'smal' is not one of the router's 3 .*did you mean 'small'\?\)",
        ),
        ({"policy": {**POLICY, "weak": "big"}}, "strong and weak must be different models, got 'big' for both"),
        ({"likelihood": {"name": "davidson", "readout": "wins"}}, r"the readout must be one of .*got 'wins'"),
        ({"likelihood": {"name": "ranking"}}, r"the loss must be one of .*got 'ranking'"),
        ({"models": 3}, "models must be a list of two or more different names, got 3"),
        ({"models": []}, r"models must be a list of two or more different names, got \[\]"),
        ({"models": ["big", "small", "big"]}, "models must be a list of two or more different names"),
        ({"max_length": "48"}, "max_length must be an integer, got '48'"),
        ({"policy": {**POLICY, "threshold": "half"}}, "threshold.threshold must be .*got 'half'"),
        ({"policy": "threshold"}, "policy must be an object, got 'threshold'"),
        (
            {"policy": {"name": "cost_aware", "cost": {}, "cost_weight": 0}},
            "format holds the policy threshold, got 'cost_aware'",
        ),
        ({"head": 1}, "unexpected keyword argument 'head'"),
    ],
)
def test_settings_are_checked(written: Path, tmp_path: Path, changed: dict, message: str) -> None:
    shutil.copytree(written, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    section = {**json.loads(path.read_text())["routerjax"], **changed}
    change_json(path, routerjax=seal({name: value for name, value in section.items() if name != SEAL}))
    with pytest.raises(InputError, match=f"config.json: the section routerjax is damaged: .*{message}"):
        formats.read(tmp_path / "out", "hf")


def test_any_change_of_the_settings_is_refused(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config, count = json.loads(path.read_text()), 0
    for changed in changes(config["routerjax"]):
        path.write_text(json.dumps({**config, "routerjax": changed}))
        with pytest.raises(
            InputError, match=r"routerjax was changed after routerjax wrote it.*--strong.*export"
        ) as raised:
            formats.read(tmp_path / "out", "hf")
        assert "\n" not in str(raised.value)
        count += 1
    assert count > 20
    # transformers names the logits by id2label, which lies beside the section.
    path.write_text(json.dumps({**config, "id2label": {"0": "big", "1": "small", "2": "medium"}}))
    with pytest.raises(
        InputError, match=r"id2label was changed .*: expected big, medium, small, got big, small, medium"
    ):
        formats.read(tmp_path / "out", "hf")
    path.write_text(json.dumps(config, sort_keys=True))  # no change of what it says
    assert formats.read(tmp_path / "out", "hf").threshold == 0.4


def test_a_threshold_is_dropped_with_the_weights_it_was_found_for(
    written: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert formats.read(written, "hf").threshold == 0.4
    shutil.copytree(written, tmp_path / "out")
    tensors = safetensors.numpy.load_file(written / "model.safetensors")
    trained = {**tensors, "classifier.bias": tensors["classifier.bias"] + 1}
    safetensors.numpy.save_file(trained, tmp_path / "out" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        assert formats.read(tmp_path / "out", "hf").threshold is None
    assert "dropped the threshold 0.4, which was found for other weights" in caplog.text


def test_a_tokenizer_that_keeps_the_last_tokens(written: Path, tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    change_json(folder / "tokenizer_config.json", truncation_side="left", model_max_length=48)
    formats.export(tiny_text_router(tmp_path), tmp_path / "right", "hf")
    tokenizer_config = json.loads((tmp_path / "right" / "tokenizer_config.json").read_text())
    assert tokenizer_config == {"truncation_side": "left", "model_max_length": 48}
    assert formats.read(tmp_path / "right", "hf").featurizer.truncation == "left"
    shutil.copytree(written, tmp_path / "left")
    change_json(tmp_path / "left" / "tokenizer_config.json", truncation_side="left")
    assert formats.read(tmp_path / "left", "hf").featurizer.truncation == "left"
    change_json(tmp_path / "left" / "tokenizer_config.json", truncation_side="both")
    with pytest.raises(InputError, match="between 'right' and 'left', current value: both"):
        formats.read(tmp_path / "left", "hf")
    # Where nothing is said of it, the tokenizer itself is asked.
    (tmp_path / "left" / "tokenizer_config.json").unlink()
    assert formats.read(tmp_path / "left", "hf").models == ("big", "medium", "small")
    path = tmp_path / "left" / "tokenizer.json"
    change_json(path, truncation={**json.loads(path.read_text())["truncation"], "direction": "Left"})
    imported = formats.read(tmp_path / "left", "hf")
    assert imported.featurizer.truncation == "left"
    long = "write a poem " * 40
    np.testing.assert_array_equal(imported.scores([long + " primes"]), imported.scores(["x " + long + " primes"]))
    other = dataclasses.replace(imported, featurizer=dataclasses.replace(imported.featurizer, truncation="middle"))
    with pytest.raises(InputError, match="transformers cannot leave out the middle of a text"):
        formats.export(other, tmp_path / "middle", "hf")


def test_what_is_compared_is_the_router_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = tiny_text_router(tmp_path, chosen={"scan_layers": True, "dtype": "bfloat16"})
    assert formats.export(router, tmp_path / "out", "hf")["model.safetensors"] < 1e-5
    unstack = hf.unstack_layers

    def out_of_order(params: dict) -> dict:
        layers = unstack(params)
        return {**layers, "layer_0": layers["layer_1"], "layer_1": layers["layer_0"]}

    monkeypatch.setattr(hf, "unstack_layers", out_of_order)
    with pytest.raises(formats.VerificationError, match="scores differ by"):
        formats.export(router, tmp_path / "swapped", "hf")
