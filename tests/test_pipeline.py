"""From a configuration to router folders: what is written, what it says of its origin, and which battles it is from."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, data, load_router
from routerjax.config import BattleSource, DataConfig, ExperimentConfig, FeatureConfig, override
from routerjax.pipeline import embed, load_config, load_preferences, provenance, train_router


@pytest.fixture
def config(arena: Path) -> ExperimentConfig:
    return load_config(arena / "config.py")


def test_a_run_is_what_the_docstring_says(arena: Path, config: ExperimentConfig) -> None:
    run = arena / "run"
    assert sorted(os.listdir(run)) == ["config.json", "knn", "router", "training"]
    assert sorted(os.listdir(run / "training")) == ["checkpoints", "metrics.jsonl", "tensorboard"]
    described = json.loads((run / "config.json").read_text())
    assert described["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert described["versions"] == {
        name: importlib.metadata.version(name) for name in ("routerjax", "jax", "flax", "optax", "numpy")
    }
    files = ("battles.parquet", "encoder/model.safetensors", "encoder/tokenizer.json")
    digests = {name: hashlib.sha256((arena / name).read_bytes()).hexdigest() for name in files}
    assert described["data_sha256"] == digests
    assert described["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", described["git_commit"])

    router, knn = load_router(run / "router"), load_router(run / "knn")
    rows = [json.loads(line) for line in (run / "training" / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["validation_loss"])
    learned = {"best_epoch": best["epoch"], "validation_loss": best["validation_loss"]}
    assert dict(router.provenance) == {**described, **learned}
    assert dict(knn.provenance) == described
    assert (router.family, knn.family) == ("mf", "knn")
    for one in (router, knn):
        assert (one.strong, one.weak, len(one.models)) == ("sim-large", "sim-small", 6)
        win_prob = one.win_prob(["what is the capital?", "prove it"])
        assert np.all((win_prob > 0) & (win_prob < 1))


@pytest.mark.parametrize("family", ["knn", "sw"])
def test_families_that_train_nothing(config: ExperimentConfig, tmp_path: Path, family: str) -> None:
    attributes = {"knn": {"k": 5}, "sw": {"num_tiers": 6}}[family]
    config = dataclasses.replace(
        config, router=dataclasses.replace(config.router, family=family, attributes=attributes)
    )
    router = train_router(config, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json", "router"]
    loaded = load_router(tmp_path / "run" / "router")
    prompts = ["what is the capital?", "prove it"]
    np.testing.assert_array_equal(loaded.win_prob(prompts), router.win_prob(prompts))
    again = train_router(config, tmp_path / "run", resume=True)
    np.testing.assert_array_equal(again.win_prob(prompts), router.win_prob(prompts))


def test_data_that_changed_is_another_run(arena: Path, config: ExperimentConfig, tmp_path: Path) -> None:
    battles = data.read_preferences(arena / "battles.parquet")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        data.write_preferences(battles, tmp_path / name / "battles.csv")
    sources = (BattleSource(path="a/battles.csv"), BattleSource(path="b/battles.csv"))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=str(tmp_path), battles=sources),
        training=dataclasses.replace(config.training, epochs=1),
    )
    train_router(config, tmp_path / "run")
    # As many battles with the same weights: only the hash tells.
    (tmp_path / "b" / "battles.csv").unlink()
    data.write_preferences(data.swap_sides(battles, seed=5), tmp_path / "b" / "battles.csv")
    with pytest.raises(InputError, match=r"the run differs in b/battles.csv \(see"):
        train_router(config, tmp_path / "run", resume=True)


def test_an_encoder_that_changed_is_another_run(config: ExperimentConfig, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(config.features.encoder, encoder)
    config = override(config, ["router.family=knn", "router.attributes={'k': 5}", f"features.encoder={encoder}"])
    train_router(config, tmp_path / "run")
    for name in ("tokenizer.json", "model.safetensors"):
        content = (encoder / name).read_bytes()
        (encoder / name).write_bytes(content + b" ")
        with pytest.raises(InputError, match=rf"the run differs in \S*encoder/{name} \(see"):
            train_router(config, tmp_path / "run", resume=True)
        (encoder / name).write_bytes(content)
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
        f"owner/name/{name}": hashlib.sha256((encoder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
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
    assert len({one["owner/name/model.safetensors"] for one in (named, sharded, changed)}) == 3
    for without in ("features.encoder=openai:any", "features.embeddings=none.npy"):
        assert hashes(without) == {}


def test_battles_of_all_sources_with_their_weights(arena: Path) -> None:
    source = BattleSource(path="battles.parquet")
    twice = (source, dataclasses.replace(source, weight=3.0))
    battles = load_preferences(DataConfig(root=str(arena), battles=twice, seed=4))
    once = data.read_preferences(arena / "battles.parquet")
    assert battles.prompts == once.prompts * 2
    np.testing.assert_array_equal(battles.weight, np.repeat([1.0, 3.0], len(once)).astype(np.float32))
    expected = data.swap_sides(data.concatenate([once, once]), seed=4)
    np.testing.assert_array_equal(battles.model_a, expected.model_a)
    np.testing.assert_array_equal(battles.outcome, expected.outcome)
    with pytest.raises(InputError, match=r"no battles: data.battles and data.golden are both empty"):
        load_preferences(DataConfig())


def test_given_embeddings_are_taken_as_they_are(tmp_path: Path) -> None:
    embedding = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.save(tmp_path / "e.npy", embedding)
    (tmp_path / "e.npy.json").write_text('{"fingerprint": "made up"}')
    found, spec = embed(["a", "b", "c"], FeatureConfig(embeddings="e.npy"), root=tmp_path, cache=None)
    np.testing.assert_array_equal(found, embedding)
    assert (spec.kind, spec.width, spec.fingerprint, spec.source) == ("given", 5, "made up", "e.npy")


def test_a_configuration_is_read_anew_each_time(arena: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    text = (arena / "config.py").read_text()
    for epochs in (3, 4):
        path.write_text(text.replace("epochs=3", f"epochs={epochs}"))
        os.utime(path, (1e9, 1e9))  # edited within one second, to a text as long as before
        assert load_config(path).training.epochs == epochs
    assert os.listdir(tmp_path) == ["mine.py"]


def test_a_configuration_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "shared_part.py").write_text("EPOCHS = 7\n")
    (tmp_path / "run.py").write_text(
        "from shared_part import EPOCHS\n"
        "from routerjax.config import *\n"
        "def get_config():\n"
        "    router = RouterConfig(strong='a', weak='b')\n"
        "    return ExperimentConfig(data=DataConfig(), router=router, training=TrainingConfig(epochs=EPOCHS))\n"
    )
    before = list(sys.path)
    assert load_config(tmp_path / "run.py").training.epochs == 7
    assert sys.path == before
