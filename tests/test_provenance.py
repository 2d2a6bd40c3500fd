"""Identity of a run: its data, its encoder and its code, wherever they lie."""

import hashlib
import json
import re
import shutil
import subprocess
import types
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError
from routerjax.config import ExperimentConfig, override
from routerjax.features import load_encoder
from routerjax.pipeline import load_config, provenance, train_router
from tests.encoders import ENCODER_FILES, WIDTH, change_json, save_modules, save_tiny_encoder

WEIGHTS = "model.safetensors"


@pytest.fixture
def config(arena: Path) -> ExperimentConfig:
    return load_config(arena / "config.py")


def test_hub_data_sets_are_known_by_their_revision(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(config, ['data.battles=[{"path": "owner/name"}]'])

    def hashes(revision: str) -> dict[str, str]:
        builder = types.SimpleNamespace(hash=revision)
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: {"owner/name": builder}[name])
        return provenance.describe_run(config)["data_sha256"]

    assert hashes("0123")["owner/name"] == "revision 0123"
    assert hashes("4567")["owner/name"] == "revision 4567"

    def unknown(name: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"no {name}")

    monkeypatch.setattr(datasets, "load_dataset_builder", unknown)
    with pytest.raises(InputError, match=r"cannot read 'owner/name', .* from the Hugging Face hub: no owner/name"):
        provenance.describe_run(config)


def test_the_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True)

    installed, package = tmp_path / "env" / "package", tmp_path / "package"
    for folder in (installed, package):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    assert provenance.git_commit(package) is None
    git("init")
    git("add", "package")
    git("commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    commit = provenance.git_commit(package)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert provenance.git_commit(installed) is None  # the checkout around it is another's
    (package / "new.py").write_text("")
    assert provenance.git_commit(package) == f"{commit}-dirty"


def change_pooling(encoder: Path) -> str:
    change_json(encoder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    return "1_Pooling/config.json"


def change_heads(encoder: Path) -> str:
    change_json(encoder / "config.json", num_attention_heads=2)
    return "config.json"


def leave_the_norm_out(encoder: Path) -> str:
    save_modules(encoder, {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"})
    return "modules.json"


def change_dense(encoder: Path) -> str:
    tensors = safetensors.numpy.load_file(encoder / "2_Dense" / "model.safetensors")
    safetensors.numpy.save_file({name: 2 * leaf for name, leaf in tensors.items()}, encoder / "2_Dense" / WEIGHTS)
    return "2_Dense/model.safetensors"


def change_activation(encoder: Path) -> str:
    change_json(encoder / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.ReLU")
    return "2_Dense/config.json"


def add_a_prompt(encoder: Path) -> str:
    change_json(
        encoder / "config_sentence_transformers.json", prompts={"query": "query: "}, default_prompt_name="query"
    )
    return "config_sentence_transformers.json"


def lower_case(encoder: Path) -> str:
    change_json(encoder / "sentence_bert_config.json", do_lower_case=True)
    return "sentence_bert_config.json"


def cut_the_beginning(encoder: Path) -> str:
    change_json(encoder / "tokenizer_config.json", truncation_side="left")
    return "tokenizer_config.json"


def change_weights(encoder: Path) -> str:
    tensors = safetensors.numpy.load_file(encoder / WEIGHTS)
    safetensors.numpy.save_file({name: 2 * leaf for name, leaf in tensors.items()}, encoder / WEIGHTS)
    return WEIGHTS


def change_tokenizer(encoder: Path) -> str:
    (encoder / "tokenizer.json").write_bytes((encoder / "tokenizer.json").read_bytes() + b" ")
    return "tokenizer.json"


ENCODER_CHANGES = (
    *(change_pooling, change_heads, leave_the_norm_out, change_dense, change_activation, add_a_prompt, lower_case),
    *(cut_the_beginning, change_weights, change_tokenizer),
)


def test_an_encoder_that_changed_is_another_run(config: ExperimentConfig, tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    save_modules(encoder, {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"})
    (encoder / "2_Dense").mkdir()
    change_json(encoder / "2_Dense" / "config.json", in_features=WIDTH, out_features=WIDTH)
    dense = {"linear.weight": np.eye(WIDTH, dtype=np.float32), "linear.bias": np.zeros(WIDTH, np.float32)}
    safetensors.numpy.save_file(dense, encoder / "2_Dense" / WEIGHTS)
    config = override(config, ["router.family=knn", "router.attributes={'k': 5}", f"features.encoder={encoder}"])
    train_router(config, tmp_path / "run")
    fingerprint = load_encoder(encoder, max_length=32).fingerprint
    shutil.copytree(encoder, tmp_path / "unchanged")
    for change in ENCODER_CHANGES:
        name = change(encoder)
        assert load_encoder(encoder, max_length=32).fingerprint != fingerprint, name
        with pytest.raises(InputError, match=rf"the run differs in encoder/{re.escape(name)} \(see"):
            train_router(config, tmp_path / "run", resume=True)
        shutil.rmtree(encoder)
        shutil.copytree(tmp_path / "unchanged", encoder)
    (encoder / "README.md").write_text("of no concern")
    train_router(config, tmp_path / "run", resume=True)


def test_a_run_knows_its_encoder_wherever_it_is(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(config.features.encoder, encoder)
    monkeypatch.setattr(provenance, "locate", lambda source: encoder if source == "owner/name" else Path(source))

    def hashes(setting: str) -> dict[str, str]:
        return {
            name: digest
            for name, digest in provenance.describe_run(override(config, [setting]))["data_sha256"].items()
            if name != "battles.parquet"
        }

    named = hashes("features.encoder=owner/name")
    assert named == {
        f"encoder/{name}": hashlib.sha256((encoder / name).read_bytes()).hexdigest() for name in ENCODER_FILES
    }
    (encoder / "model.safetensors").rename(encoder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"is incomplete: no .*model-2.safetensors"):
        hashes("features.encoder=owner/name")
    (encoder / "model-2.safetensors").write_bytes(b"other")
    sharded = hashes("features.encoder=owner/name")
    (encoder / "model-2.safetensors").write_bytes(b"changed")
    changed = hashes("features.encoder=owner/name")
    assert len({one["encoder/model.safetensors"] for one in (named, sharded, changed)}) == 3
    for without in ("features.encoder=openai:any", "features.embeddings=none.npy"):
        assert hashes(without) == {}
