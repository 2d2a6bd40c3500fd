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

from routerjax import InputError, data, evaluation, formats, load_router, metrics
from routerjax.config import BattleSource, DataConfig, ExperimentConfig, FeatureConfig, override
from routerjax.families import FAMILIES, MF, layer_depths
from routerjax.features import Embeddings, SentenceFeaturizer, open_featurizer
from routerjax.pipeline import load_config, load_preferences, train_router
from routerjax.prompts import prompt_ids
from tests.encoders import ENCODER_FILES


@pytest.fixture
def config(arena: Path) -> ExperimentConfig:
    return load_config(arena / "config.py")


def test_a_run_is_what_the_docstring_says(arena: Path, config: ExperimentConfig) -> None:
    run = arena / "run"
    assert sorted(os.listdir(run)) == ["knn", "router", "run.json", "training"]
    assert sorted(os.listdir(run / "training")) == ["checkpoints", "metrics.jsonl", "tensorboard"]
    described = json.loads((run / "run.json").read_text())
    assert described["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
    for name in ("routerjax", "jax", "jaxlib", "flax", "optax", "numpy"):
        assert described["versions"][name] == importlib.metadata.version(name)
    files = ["battles.parquet", *(f"encoder/{name}" for name in ENCODER_FILES)]
    digests = {name: hashlib.sha256((arena / name).read_bytes()).hexdigest() for name in files}
    assert described["data_sha256"] == digests
    assert described["git_commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", described["git_commit"])

    assert re.fullmatch("[0-9a-f]{32}", described.pop("run_id"))
    (start,) = described.pop("starts")
    assert start["command"] == sys.argv
    assert start["environment"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert start["hardware"].items() >= {"devices": 8, "device_kind": "cpu", "processes": 1}.items()
    assert start["jax"]["jax_enable_x64"] is False

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


def test_rates_that_a_family_has_no_layers_for_are_refused_before_the_work(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise AssertionError("a prompt was encoded")

    family = dataclasses.replace(MF, name="mf in groups", parameter_groups=lambda params: layer_depths(params))
    monkeypatch.setattr(SentenceFeaturizer, "encode", encode)
    monkeypatch.setitem(FAMILIES._entries, family.name, family)
    with pytest.raises(InputError, match="frozen_layers are for routers that train an encoder"):
        train_router(override(config, [f"router.family={family.name}", "optimizer.frozen_layers=1"]), tmp_path / "run")


def test_steps_to_trace_that_the_run_has_not_are_refused_before_anything_is_written(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"training\.profile=5:500 is beyond the run, which has 27 steps"):
        train_router(override(config, ["training.profile=5:500"]), tmp_path / "run")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("family", ["knn", "sw"])
def test_families_that_train_nothing(config: ExperimentConfig, tmp_path: Path, family: str) -> None:
    attributes = {"knn": {"k": 5}, "sw": {"num_tiers": 6}}[family]
    config = dataclasses.replace(
        config, router=dataclasses.replace(config.router, family=family, attributes=attributes)
    )
    router = train_router(config, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["router", "run.json"]
    loaded = load_router(tmp_path / "run" / "router")
    prompts = ["what is the capital?", "prove it"]
    np.testing.assert_array_equal(loaded.win_prob(prompts), router.win_prob(prompts))
    again = train_router(config, tmp_path / "run", resume=True)
    np.testing.assert_array_equal(again.win_prob(prompts), router.win_prob(prompts))
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("family", ["knn", "sw"])
def test_a_memory_holds_no_battle_that_is_held_out(config: ExperimentConfig, tmp_path: Path, family: str) -> None:
    config = override(config, [f"router.family={family}", "router.attributes={}"])
    battles = load_preferences(config.data)
    train, held_out = data.split_by_prompt(battles, validation_fraction=0.2, seed=config.data.seed)
    remembered = train_router(config, tmp_path / "run").variables["memory"]
    assert len(held_out) > 0
    # sw leaves prompts out whose battles are all ties within a tier; no other prompt may appear.
    ids = {tuple(row) for row in prompt_ids(train.unique_prompts).tolist()}
    assert {tuple(row) for row in np.asarray(remembered["prompt_id"]).tolist()} <= ids
    if family == "knn":
        total = 2 * train.weight.sum(dtype=np.float64)  # a battle counts for both of its models
        assert np.asarray(remembered["battle_count"]).sum(dtype=np.float64) == pytest.approx(total)


def test_the_control_of_a_run_remembers_no_battle_that_is_held_out(arena: Path, config: ExperimentConfig) -> None:
    train, _ = data.split_by_prompt(load_preferences(config.data), validation_fraction=0.2, seed=config.data.seed)
    remembered = load_router(arena / "run" / "knn").variables["memory"]["prompt_id"]
    np.testing.assert_array_equal(remembered, prompt_ids(train.unique_prompts))


@pytest.mark.parametrize("family", ["knn", "sw"])
def test_leaving_own_battles_out_is_evaluations_choice(
    arena: Path, config: ExperimentConfig, tmp_path: Path, family: str
) -> None:
    settings = ["router.attributes={'k': 5}"] if family == "knn" else ["router.attributes={'num_tiers': 0}"]
    config = override(config, [f"router.family={family}", *settings, "data.validation_fraction=0.0"])
    router = train_router(config, tmp_path / "run")
    prompts = load_preferences(config.data).unique_prompts[:8]
    served = router.win_prob(prompts)
    embeddings = Embeddings(router.featurizer.encode(prompts), router.featurizer.fingerprint)
    # Serving gives one answer, whichever way the prompt comes, and the bundle gives the same.
    np.testing.assert_allclose(router.win_prob(embeddings), served, atol=1e-6)
    assert formats.export(router, tmp_path / "bundle", "stablehlo", prompts=prompts)["from_text"] <= 1e-5
    evaluated = router.win_prob(prompts, exclude_own_battles=True)
    assert np.abs(evaluated - served).max() > 1e-3
    for one in (router.scores, router.outcome_prob):
        assert np.abs(one(prompts, exclude_own_battles=True) - one(prompts)).max() > 1e-3
    with pytest.raises(InputError, match="exclude_own_battles needs prompts as texts"):
        router.win_prob(embeddings, exclude_own_battles=True)
    if family == "knn":
        quality = {model: np.arange(8) % (2 + column) / 3 for column, model in enumerate(("sim-large", "sim-small"))}
        benchmark = data.Benchmark(name="b", prompts=prompts, quality=quality, strong="sim-large", weak="sim-small")
        data.write_benchmark_table(benchmark, tmp_path / "b.parquet")
        pair = {"strong": "sim-large", "weak": "sim-small", "resamples": metrics.Resamples(1)}
        (result,) = evaluation.evaluate_routers(
            [tmp_path / "run"], benchmarks=[str(tmp_path / "b.parquet")], **pair, output=tmp_path / "evaluated"
        )
        label = evaluation.preference_label(benchmark, strong="sim-large", weak="sim-small")
        assert result.routers["run"].log_loss.value == pytest.approx(metrics.log_loss(evaluated, label), abs=1e-6)
    # What is left out are the prompt's battles: a prompt that was not remembered scores as it is served.
    np.testing.assert_allclose(
        router.win_prob(["never seen"], exclude_own_battles=True), router.win_prob(["never seen"]), atol=1e-6
    )


def test_a_step_takes_no_more_than_all_battles(
    config: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = ["training.epochs=1", f"training.batch_size={2**31 - 1}"]
    train_router(override(config, settings), tmp_path / "run")
    assert "training.batch_size 2147483647 is beyond the 268 battles: a step takes them all" in caplog.messages
    assert any("268 battles, 1 steps" in message for message in caplog.messages)


def test_an_empty_router_folder_is_filled_by_a_resume(arena: Path, config: ExperimentConfig, tmp_path: Path) -> None:
    shutil.copytree(arena / "run", tmp_path / "run")
    for name in ("router", "knn"):
        shutil.rmtree(tmp_path / "run" / name)
        (tmp_path / "run" / name).mkdir()
    router = train_router(config, tmp_path / "run", resume=True)
    for name in ("router", "knn"):
        assert load_router(tmp_path / "run" / name).models == router.models


def test_what_a_killed_run_left_before_it_wrote_anything_is_no_obstacle(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run.json.abc.tmp").touch()
    train_router(override(config, ["router.family=knn", "router.attributes={'k': 5}"]), run)
    assert sorted(os.listdir(run)) == ["router", "run.json"]


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


def test_a_run_is_the_same_wherever_its_data_lies_and_however_often_it_is_saved(
    arena: Path, config: ExperimentConfig, tmp_path: Path
) -> None:
    shutil.copytree(arena / "run", tmp_path / "run")
    for name in ("encoder", "battles.parquet"):
        (shutil.copytree if name == "encoder" else shutil.copy)(arena / name, tmp_path / name)
    moved = [f"data.root={tmp_path}", f"features.encoder={tmp_path / 'encoder'}", "training.checkpoint_every=2"]
    train_router(override(config, moved), tmp_path / "run", resume=True)
    for setting in ("training.patience=2", "router.strong=sim-medium", "data.seed=9", "router.attributes={}"):
        name = setting.partition("=")[0]
        with pytest.raises(InputError, match=rf"the run differs in {name} \(see"):
            train_router(override(config, [*moved, setting]), tmp_path / "run", resume=True)


def test_another_fingerprint_of_given_embeddings_is_another_run(
    arena: Path, config: ExperimentConfig, tmp_path: Path
) -> None:
    np.save(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32))
    (tmp_path / "e.npy.json").write_text('{"fingerprint": "made up"}')
    settings = [f"features.embeddings={tmp_path / 'e.npy'}", "router.family=knn", "router.attributes={'k': 5}"]
    train_router(override(config, settings), tmp_path / "run")
    (tmp_path / "e.npy.json").write_text('{"fingerprint": "another"}')
    with pytest.raises(InputError, match=r"the run differs in \S*e.npy.json \(see"):
        train_router(override(config, settings), tmp_path / "run", resume=True)


def test_a_run_that_is_not_resident_learns_the_same_and_has_no_control(
    config: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32))
    (tmp_path / "e.npy.json").write_text('{"fingerprint": "made up"}')
    settings = [f"features.embeddings={tmp_path / 'e.npy'}", "router.attributes={'model_dim': 8}"]
    losses = []
    for resident in (True, False):
        run = tmp_path / f"resident_{resident}"
        with caplog.at_level("INFO"):
            train_router(override(config, [*settings, f"training.resident={resident}"]), run)
        rows = [json.loads(line) for line in (run / "training" / "metrics.jsonl").read_text().splitlines()]
        losses.append([[row["loss"], row["validation_loss"]] for row in rows])
        assert (run / "knn").exists() == ("no nearest-neighbour control" not in caplog.text) == resident
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert "of that time waiting for batches" in caplog.text
    settings += ["training.resident=False", "router.family=knn", "router.attributes={}"]
    with pytest.raises(InputError, match=r"training.resident must be True for knn, got False: it trains nothing"):
        train_router(override(config, settings), tmp_path / "knn")


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
    given = open_featurizer(FeatureConfig(embeddings="e.npy"), root=tmp_path)
    np.testing.assert_array_equal(given.query(["a", "b", "c"])["embedding"], embedding)
    with pytest.raises(InputError, match=r"e.npy holds 3 embeddings, expected 2: one for each different prompt"):
        given.query(["a", "b"])
    assert given.to_dict() == {"kind": "given", "width": 5, "fingerprint": "made up", "source": "e.npy"}
    with pytest.raises(InputError, match="cannot read text"):  # as a router has it
        given.for_scoring().query(["a", "b", "c"])


def test_a_configuration_is_read_anew_each_time(arena: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    text = (arena / "config.py").read_text()
    for epochs in (3, 4):
        path.write_text(text.replace("epochs=3", f"epochs={epochs}"))
        os.utime(path, (1e9, 1e9))  # edited within one second, to a text as long as before
        assert load_config(path).training.epochs == epochs
    assert os.listdir(tmp_path) == ["mine.py"]


NEIGHBOURLY = """\
from shared_part import EPOCHS
from routerjax.config import *
def get_config():
    router = RouterConfig(strong='a', weak='b')
    return ExperimentConfig(data=DataConfig(), router=router, training=TrainingConfig(epochs=EPOCHS))
"""


def test_a_configuration_may_import_its_neighbours(tmp_path: Path) -> None:
    before, modules = list(sys.path), set(sys.modules)
    for folder, epochs in (("one", 7), ("two", 8), ("one", 9)):  # another neighbour of that name, and one that changed
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "shared_part.py").write_text(f"EPOCHS = {epochs}\n")
        os.utime(tmp_path / folder / "shared_part.py", (1e9, 1e9))
        (tmp_path / folder / "run.py").write_text(NEIGHBOURLY)
        assert load_config(tmp_path / folder / "run.py").training.epochs == epochs
        assert sorted(os.listdir(tmp_path / folder)) == ["run.py", "shared_part.py"]
    assert sys.path == before
    assert set(sys.modules) == modules
