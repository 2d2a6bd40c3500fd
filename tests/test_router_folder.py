"""Router folders: what was changed after it was written, is damaged, or makes no sense is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, load_router, save_router
from routerjax.cli import main
from tests.json_changes import changes
from tests.routers import forge, tiny_router, tiny_text_router

POLICY = {"name": "threshold", "strong": "big", "weak": "small", "threshold": 0.5}
FEATURES = {"kind": "given", "source": "e.npy", "width": 16, "fingerprint": "f"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``text``, a router that reads text itself, and ``mf``, one of embeddings, which are calibrated."""
    folder = tmp_path_factory.mktemp("routers")
    calibration = {"slope": np.float32(2), "intercept": np.float32(0)}
    save_router(tiny_text_router(folder, threshold=0.5), folder / "text")
    plain = tiny_router(folder, threshold=0.5)
    save_router(
        tiny_router(folder, threshold=0.5, variables={**plain.variables, "calibration": calibration}), folder / "mf"
    )
    return folder


@pytest.fixture
def folder(folders: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Copy of the router that a test names, ``mf`` unless it says otherwise."""
    return Path(shutil.copytree(folders / getattr(request, "param", "mf"), tmp_path / "saved"))


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_router(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["mf", "text"], indirect=True)
def test_any_change_of_the_description_is_refused(folder: Path) -> None:
    path = folder / "router.json"
    content, count = json.loads(path.read_text()), 0
    for changed in changes(content):
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"router\.json(: expected format| was changed after routerjax wrote it)"):
            load_router(folder)
        count += 1
    assert count > 40
    path.write_text(json.dumps(content, sort_keys=True))  # no change of what it says
    assert load_router(folder).threshold == 0.5


def test_the_message_says_which_command_changes_it_rightly(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\nprove it\na poem\n")
    path = folder / "router.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "policy": {**POLICY, "strong": "small", "weak": "big"}}))
    assert main(["score", str(folder), "--input", str(prompts)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    for option in ("--strong", "--weak", "calibrate --strong-share", "score --threshold"):
        assert option in printed
    path.write_text(json.dumps(content))
    other = ["calibrate", str(folder), "--strong", "small", "--weak", "big", "--prompts", str(prompts)]
    assert main([*other, "--strong-share", "0.5", "--output", str(tmp_path / "other")]) == 0
    router = load_router(tmp_path / "other")
    assert (router.strong, router.weak) == ("small", "big")
    assert "calibration" not in router.variables


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policy": {**POLICY, "strong": 5}}, "saved: threshold.strong must be text, got 5"),
        ({"policy": {**POLICY, "strong": None}}, "saved: threshold.strong must be text, got None"),
        ({"policy": {**POLICY, "weak": ["small"]}}, r"saved: threshold.weak must be text, got \['small'\]"),
        ({"policy": {**POLICY, "weak": "big"}}, "saved: strong and weak must be different models, got 'big' for both"),
        ({"policy": {**POLICY, "strong": "huge"}}, "saved: 'huge' is not one of the router's 3 models"),
        ({"models": [1, 2, 3]}, "saved: router.json.models.0 must be text, got 1"),
        ({"models": ["big", "small", "small"]}, "saved: a router's models must be two or more different names"),
        ({"models": ["big", "small"]}, "saved: the tensors do not fit the module mf"),
        ({"models": "big"}, "saved: router.json.models must be a tuple, each item text, got 'big'"),
        ({"attributes": [1]}, r"saved: router.json.attributes must be a mapping of names, .*got \[1\]"),
        ({"attributes": {"model_dim": [8]}}, "saved: router.json.attributes.model_dim must be"),
        ({"attributes": {"model_dim": 9}}, "saved: the tensors do not fit the module mf"),
        ({"attributes": {"model_dim": -8}}, "saved: mf.model_dim must be"),
        ({"family": "knn", "attributes": {}}, "saved: the tensors do not fit the module knn"),
        ({"family": "fm"}, r"saved: the family must be one of .*'fm' \(did you mean 'mf'\?\)"),
        ({"likelihood": {"name": "davidson"}}, r"saved: expected the davidson parameters {'tie': \(\)}, got {}"),
        ({"likelihood": {"name": "three_outcome"}}, "saved: the tensors do not fit the module mf"),
        ({"likelihood": {"name": "bradley_terry", "readout": 3}}, "saved: bradley_terry.readout must be text, got 3"),
        ({"likelihood": {"name": "davidson", "readout": "wins"}}, r"saved: the readout must be one of .*got 'wins'"),
        ({"likelihood": {"name": "davidsson"}}, r"saved: the loss must be one of .*\(did you mean 'davidson'\?\)"),
        ({"likelihood": {"name": "davidson", "nu": 1}}, "saved: no setting 'davidson.nu'"),
        ({"likelihood": []}, "saved: router.json.likelihood must be a mapping of names"),
        ({"policy": {**POLICY, "threshold": True}}, "saved: threshold.threshold must be .*got True"),
        ({"policy": {**POLICY, "threshold": "0.2"}}, "saved: threshold.threshold must be .*got '0.2'"),
        ({"policy": {**POLICY, "threshold": 1.5}}, r"saved: the threshold must lie in \[0, 1\].*got 1.5"),
        ({"policy": []}, "saved: router.json.policy must be a mapping of names"),
        ({"policy": {}}, "saved: the policy must be one of threshold, cost_aware.*, got ''"),
        ({"policy": {"name": "treshold"}}, r"saved: the policy must be one of .*\(did you mean 'threshold'\?\)"),
        ({"featurizer": []}, "saved: router.json.featurizer must be"),
        ({"featurizer": {"kind": "sentence"}}, "saved: featurizer.source must be given: text"),
        ({"featurizer": {**FEATURES, "width": 0}}, "saved: featurizer.width must be an integer in .*got 0"),
        ({"featurizer": {**FEATURES, "kind": "image"}}, "saved: featurizer.kind must be one of .*got 'image'"),
        ({"provenance": 1}, "saved: router.json.provenance must be a mapping of names, each value of any kind, got 1"),
        ({"temperature": 1}, "saved: no setting 'router.json.temperature': RouterDescription has family"),
        ({"policy": {**POLICY, "strong": "half an emoji \ud83d"}}, "saved: router.json is no JSON in UTF-8"),
    ],
)
def test_a_forged_description_is_checked_field_by_field(folder: Path, changed: dict, message: str) -> None:
    forge(folder, **changed)
    refuse(folder, message)


@pytest.mark.parametrize("folder", ["text"], indirect=True)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "float16"}, "saved: featurizer.encoder.dtype must be one of float32, bfloat16, got 'float16'"),
        ({"num_heads": 0}, "saved: featurizer.encoder.num_heads must be an integer in .*, got 0"),
        ({"num_heads": 5}, r"saved: featurizer.encoder.num_heads \(5\) must divide its width \(16\)"),
        ({"dropout_rate": 1.5}, r"saved: featurizer.encoder.dropout_rate must be a number in \[0, 1\), got 1.5"),
        (
            {"layer_norm_epsilon": -1.0},
            "saved: featurizer.encoder.layer_norm_epsilon must be a number of at least 0, got -1",
        ),
        ({"num_token_types": -1}, "saved: featurizer.encoder.num_token_types must be an integer in .*, got -1"),
        ({"depth": 3}, "saved: featurizer.encoder has vocab_size, .*; got depth"),
    ],
)
def test_a_forged_encoder_is_checked_too(folder: Path, changed: dict, message: str) -> None:
    featurizer = json.loads((folder / "router.json").read_text())["featurizer"]
    forge(folder, featurizer={**featurizer, "encoder": {**featurizer["encoder"], **changed}})
    refuse(folder, message)


def classifier_of(value: float) -> Callable[[dict], dict]:
    def change(tensors: dict) -> dict:
        classifier = tensors["params/classifier"].copy()
        classifier[3] = value
        return {**tensors, "params/classifier": classifier}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (classifier_of(np.nan), "params/classifier must be finite, got NaN or infinity"),
        (classifier_of(np.inf), "params/classifier must be finite, got NaN or infinity"),
        (lambda tensors: {name: leaf.astype(np.int8) for name, leaf in tensors.items()}, "expected floats .* of int8"),
        (
            lambda tensors: {**tensors, "calibration/slope": np.ones(3, np.float32)},
            r"a calibration is .*'slope': \(3,\)",
        ),
        (lambda tensors: {**tensors, "calibration/knots": np.ones(3, np.float32)}, "a calibration is a slope and an"),
        (
            lambda tensors: {**tensors, "batch_stats/mean": np.ones(3, np.float32)},
            "mf .*, got the collection 'batch_stats'",
        ),
        (lambda tensors: {"calibration/slope": tensors["calibration/slope"]}, "the tensors do not fit the module mf"),
    ],
)
def test_forged_tensors_are_checked(folder: Path, change: Callable[[dict], dict], message: str) -> None:
    path = folder / "router.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)
    refuse(folder, "is not the file that router.json describes")
    forge(folder)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 200_000, "is not JSON"),
        ('{"a":' * 200_000, "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "expected format 'routerjax-router-5', got None"),
        ('{"format": "routerjax-router-1"}', "got 'routerjax-router-1': routerjax of another version wrote it"),
        ('{"format": "routerjax-router-5"}', "was changed after routerjax wrote it"),
        ('{"format": "routerjax-router-5", "attributes": {"smoothing": Infinity}}', "finite numbers"),
        ('{"format": "routerjax-router-5", "attributes": {"smoothing": 1e999}}', "finite numbers"),
        ('{"format": "routerjax-router-5", "content_sha256": [1]}', "was changed after routerjax wrote it"),
        ("\xff", "is not JSON"),
    ],
)
def test_descriptions_that_are_none(folder: Path, content: str, message: str) -> None:
    (folder / "router.json").write_text(content, encoding="latin-1")
    refuse(folder, message)


def test_files_that_are_missing_or_cut(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a router folder: no router.json in it"):
        load_router(tmp_path)
    (tmp_path / "training").mkdir()
    with pytest.raises(InputError, match=r"is a run that has not ended \(train --resume .*\), and not a router folder"):
        load_router(tmp_path)
    (tmp_path / "bundle.json").touch()
    with pytest.raises(InputError, match=r"is a bundle, which its routerjax_runtime.py scores with, and not a router"):
        load_router(tmp_path)
    description, tensors = folder / "router.json", folder / "router.safetensors"
    content = description.read_bytes()
    description.write_bytes(content[:100])
    refuse(folder, r"router.json is not JSON")
    description.write_bytes(content)
    tensors.write_bytes(tensors.read_bytes()[:-10])
    refuse(folder, r"is not the file that router.json describes .*truncated or exchanged")
    forge(folder)
    refuse(folder, r"router.safetensors is damaged")
    tensors.unlink()
    refuse(folder, r"is incomplete: no router.safetensors in it")


@pytest.mark.parametrize("folder", ["text"], indirect=True)
def test_the_tokenizers_files_are_those_that_were_written(folder: Path) -> None:
    tokenizer = folder / "featurizer" / "tokenizer.json"
    content = tokenizer.read_text()
    (folder / "featurizer" / "notes.txt").write_text("no part of the router")
    (folder / "featurizer" / "tokenizer_config.json").write_text("{")  # nor is this one, which the description lacks
    assert set(load_router(folder).featurizer.files) == {"tokenizer.json"}
    for changed in (content.replace('"poem"', '"ode"'), content[:100]):
        tokenizer.write_text(changed)
        refuse(folder, r"tokenizer.json is not the file that router.json describes")
    tokenizer.unlink()
    refuse(folder, r"the router is incomplete: no file .*tokenizer\.json of its featurizer")
    (folder / "featurizer" / "notes.txt").unlink()
    (folder / "featurizer" / "tokenizer_config.json").unlink()
    tokenizer.parent.rmdir()
    refuse(folder, "the router is incomplete: no folder")


def test_provenance_is_json(tmp_path: Path) -> None:
    for value in (np.nan, {1, 2}):
        with pytest.raises(InputError, match="a description must be JSON with finite numbers"):
            save_router(tiny_router(tmp_path, provenance={"loss": value}), tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    save_router(tiny_router(tmp_path, provenance={"rows": (1, 2), "by_seed": {3: 0.5}}), tmp_path / "saved")
    assert load_router(tmp_path / "saved").provenance == {"rows": [1, 2], "by_seed": {"3": 0.5}}
