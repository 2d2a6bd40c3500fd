"""Published routers become routers of ours that score the same."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy

from routerjax import InputError, Router, data, features, formats, load_router, models, policies
from routerjax.cli import main
from routerjax.features import routellm_features
from routerjax.likelihoods import RaoKupper
from routerjax.pretrained import routellm
from routerjax.prompts import prompt_sha256
from routerjax.tables import write_table
from tests.encoders import TEXTS, change_json, save_tiny_classifier
from tests.golden import routellm_sw
from tests.routellm import random_tensors, reference_win_prob, unit_rows, write_checkpoint

STRONG, WEAK = "gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("released"), random_tensors("released"))


def embeddings(router: Router, count: int) -> features.Embeddings:
    return features.Embeddings(unit_rows(count, router.featurizer.width), router.featurizer.fingerprint)


@pytest.mark.parametrize("naming", ["released", "training"])
def test_scores_are_those_of_the_published_formula(tmp_path: Path, naming: routellm.Naming) -> None:
    tensors = random_tensors(naming)
    router = formats.read(write_checkpoint(tmp_path, tensors), "routellm-mf")
    assert (router.strong, router.weak, router.featurizer) == (STRONG, WEAK, routellm_features(1536))
    given = embeddings(router, 200)
    win_prob = router.win_prob(given)
    expected = reference_win_prob(tensors, given.embedding, 24, 36)
    assert expected.min() < 0.1
    assert expected.max() > 0.9
    np.testing.assert_allclose(win_prob, expected, rtol=0, atol=1e-6)
    other = reference_win_prob(tensors, given.embedding, 0, 63)
    np.testing.assert_allclose(router.win_prob(given, "RWKV-4-Raven-14B", "zephyr-7b-beta"), other, rtol=0, atol=1e-6)


def test_a_prompt_at_the_threshold_goes_to_the_strong_model(checkpoint: Path) -> None:
    router = formats.read(checkpoint, "routellm-mf")
    win_prob = router.win_prob(embeddings(router, 20))
    threshold = float(win_prob[3])
    np.testing.assert_array_equal(policies.route(win_prob, threshold), [value >= threshold for value in win_prob])
    assert policies.route(win_prob, threshold)[3]


def test_the_command_line_imports_and_exports_bit_for_bit(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    imported, exported = tmp_path / "router", tmp_path / "exported"
    assert main(["import", str(checkpoint.parent), "--format", "routellm-mf", "--output", str(imported)]) == 0
    assert f"router of 64 models written to {imported}: {STRONG} or {WEAK}" in capsys.readouterr().out
    router = load_router(imported)
    assert router.provenance["imported_from"] == str(checkpoint.parent)
    assert main(["export", str(imported), "--format", "routellm", "--output", str(exported)]) == 0
    printed = capsys.readouterr().out
    assert (
        f"mf: {{checkpoint_path: {exported}, strong_model: {STRONG}, weak_model: {WEAK}, hidden_size: 128}}" in printed
    )
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", "model.safetensors"]
    before, after = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (checkpoint.parent, exported)
    )
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert leaf.tobytes() == after[name].tobytes()
        assert leaf.shape == after[name].shape


def test_the_pair_is_chosen_on_the_command_line(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["import", str(checkpoint), "--format", "routellm-mf", "--output", str(tmp_path / "router")]
    assert main([*command, "--strong", "gpt-4-0613", "--weak", "gpt4-0613"]) == 2
    assert "'gpt4-0613' is not one of the router's 64 models (did you mean 'gpt-4-0613'?)" in capsys.readouterr().err
    assert main([*command, "--strong", "gpt-4-0613", "--weak", "claude-1"]) == 0
    router = load_router(tmp_path / "router")
    assert (router.strong, router.weak) == ("gpt-4-0613", "claude-1")


def test_a_configuration_of_routellm(tmp_path: Path, checkpoint: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"mf:\n  checkpoint_path: {checkpoint.parent}\n  weak_model: vicuna-7b\n  hidden_size: 128\n")
    router = formats.read(config, "routellm-mf")
    assert (router.strong, router.weak) == (STRONG, "vicuna-7b")
    assert formats.read(config, "routellm-mf", weak="vicuna-13b").weak == "vicuna-13b"
    given = embeddings(router, 5)
    np.testing.assert_array_equal(router.scores(given), formats.read(checkpoint, "routellm-mf").scores(given))
    for setting, message in (
        ("hidden_size: 64", "mf.hidden_size is 64, but .* holds 128"),
        ("text_dim: 384", "mf.text_dim is 384, but .* holds 1536"),
        ("use_proj: false", "mf.use_proj is False, but .* holds True"),
    ):
        config.write_text(f"mf: {{checkpoint_path: {checkpoint.parent}, {setting}}}")
        with pytest.raises(InputError, match=message):
            formats.read(config, "routellm-mf")


def test_a_hub_name_goes_through_the_same_search(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr(routellm, "locate", lambda source: {"routellm/mf_gpt4_augmented": checkpoint.parent}[source])
    router = formats.read("routellm/mf_gpt4_augmented", "routellm-mf")
    assert router.provenance["imported_from"] == "routellm/mf_gpt4_augmented"


def test_another_width_is_imported_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = random_tensors("released", model_dim=4, embed=6)
    with caplog.at_level(logging.WARNING):
        router = formats.read(write_checkpoint(tmp_path, tensors), "routellm-mf")
    assert "reads embeddings 6 wide; RouteLLM's own are 1536" in caplog.text
    given = embeddings(router, 10)
    np.testing.assert_allclose(router.win_prob(given), reference_win_prob(tensors, given.embedding, 24, 36), atol=1e-6)


def test_an_imported_router_exports_to_stablehlo(tmp_path: Path, checkpoint: Path) -> None:
    differences = formats.export(formats.read(checkpoint, "routellm-mf"), tmp_path / "bundle", "stablehlo")
    assert list(differences) == ["from_embedding"]
    assert differences["from_embedding"] <= 1e-6


def test_similarity_weighted_ranking_from_battles_and_aligned_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1", "claude-1", "vicuna-7b"]
    a = rng.integers(4, size=60)
    b = (a + rng.integers(1, 4, size=60)) % 4
    wins = np.eye(3, dtype=int)[rng.integers(3, size=60)]
    battles = {
        "model_a": [names[model] for model in a],
        "model_b": [names[model] for model in b],
        "prompt": [json.dumps([f"a question with the number {row}"]) for row in range(60)],
        **{f"winner_{who}": wins[:, column] for column, who in enumerate(("model_a", "tie", "model_b"))},
    }
    vectors = unit_rows(60, 8)
    write_table(pa.table(battles), str(tmp_path / "battles.parquet"))
    write_table(pa.table({"embeddings": vectors.tolist()}), str(tmp_path / "embeddings.parquet"))
    config = tmp_path / "config.yaml"
    sources = f"arena_battle_datasets: [{tmp_path}/battles.parquet]\n  arena_embedding_datasets:"
    config.write_text(f"sw_ranking:\n  {sources} [{tmp_path}/embeddings.parquet]\n  num_tiers: 3\n")
    assert main(["import", str(config), "--format", "routellm-sw", "--output", str(tmp_path / "router")]) == 0
    router = load_router(tmp_path / "router")
    assert (router.family, router.strong, router.weak) == ("sw", STRONG, WEAK)
    given = embeddings(router, 9)
    # The same router, built from its parts.
    read, aligned = data.read_aligned_battles(tmp_path / "battles.parquet", tmp_path / "embeddings.parquet")
    batch = data.to_batch(read, aligned)
    tier = models.battle_tiers(batch, num_models=4, num_tiers=3)
    memory = {"memory": models.similarity_weighted_memory(batch, tier=tier)}
    module = models.SimilarityWeighted(num_models=4, num_tiers=3)
    scores = jax.jit(module.apply)(memory, {"embedding": given.embedding})
    np.testing.assert_allclose(router.scores(given), scores, rtol=1e-4, atol=1e-4)
    assert formats.export(router, tmp_path / "bundle", "stablehlo")["from_embedding"] <= 1e-6


def test_similarity_weighted_ranking_is_that_of_routellm(tmp_path: Path) -> None:
    columns, embedding, queries = routellm_sw.arena()
    # Each battle's prompt is a text of its own.
    prompts = {"prompt": [f"a question with the number {row}" for row in range(len(embedding))]}
    write_table(pa.table({**columns, **prompts}), str(tmp_path / "battles.parquet"))
    write_table(pa.table({"embeddings": embedding.tolist()}), str(tmp_path / "embeddings.parquet"))
    config = tmp_path / "config.yaml"
    sources = f"arena_battle_datasets: [{tmp_path}/battles.parquet]\n  arena_embedding_datasets:"
    settings = f"{sources} [{tmp_path}/embeddings.parquet]\n  num_tiers: {routellm_sw.NUM_TIERS}"
    config.write_text(f"sw_ranking:\n  {settings}\n")
    router = formats.read(config, "routellm-sw")
    golden = json.loads(routellm_sw.GOLDEN.read_text())
    assert dict(zip(router.models, np.asarray(router.variables["memory"]["tier"]), strict=True)) == golden["tier"]
    win_rate = router.win_prob(features.Embeddings(queries, router.featurizer.fingerprint))
    np.testing.assert_allclose(win_rate, golden["win_rate"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mf: {checkpoint_path: x}", "has no section sw_ranking; it has mf"),
        ("sw_ranking: {num_tiers: 3}", r"sw_ranking\.arena_battle_datasets must be given"),
        (
            "sw_ranking: {arena_battle_datasets: x, arena_embedding_datasets: [y]}",
            "must be a tuple, each item text, got 'x'",
        ),
        (
            "sw_ranking: {arena_battle_datasets: [x], arena_embedding_datasets: [y], tiers: 3}",
            r"no setting '.*sw_ranking\.tiers': .*\(did you mean 'num_tiers'\?\)",
        ),
    ],
)
def test_bad_configurations_of_similarity_weighted_ranking(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        formats.read(tmp_path / "config.yaml", "routellm-sw")
    with pytest.raises(InputError, match=r"battles\.csv must be a RouteLLM configuration"):
        formats.read(tmp_path / "battles.csv", "routellm-sw")


def test_an_imported_router_reads_text_through_openais_endpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = formats.read(checkpoint, "routellm-mf")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert router.featurizer.fingerprint == features.EndpointEncoder("openai:text-embedding-3-small").fingerprint
    prompts = ["What is a monad?"]
    given = embeddings(router, 1)
    with features.EmbeddingCache(checkpoint.parent / "cache.sqlite") as cache:
        cache.put(router.featurizer.fingerprint, {prompt_sha256(prompts[0]): given.embedding[0]})
        np.testing.assert_array_equal(router.win_prob(prompts, cache=cache), router.win_prob(given))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    with pytest.raises(InputError, match=r"refused: .* at http://127.0.0.1:8000/v1, but .* at https://api.openai.com"):
        formats.read(checkpoint, "routellm-mf").win_prob(prompts)


def test_what_the_format_cannot_hold_is_not_exported(tmp_path: Path, checkpoint: Path) -> None:
    router = formats.read(checkpoint, "routellm-mf")
    calibration = {"slope": np.float32(2), "intercept": np.float32(0)}
    calibrated = dataclasses.replace(router, variables={**router.variables, "calibration": calibration})
    with pytest.raises(InputError, match="has no place for a calibration"):
        formats.export(calibrated, tmp_path / "out", "routellm")
    with pytest.raises(InputError, match="has no place for the loss rao_kupper"):
        formats.export(dataclasses.replace(router, likelihood=RaoKupper()), tmp_path / "out", "routellm")
    assert not (tmp_path / "out").exists()


def test_a_classifier_of_three_labels(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "bert", ("LABEL_0", "LABEL_1", "LABEL_2"))
    router = formats.read(folder, "routellm-bert")
    assert (router.models, router.strong, router.weak) == ((STRONG, WEAK), STRONG, WEAK)
    win, _, loss = np.moveaxis(router.outcome_prob(TEXTS), -1, 0)
    assert np.abs(win - loss).min() > 1e-3
    np.testing.assert_allclose(router.win_prob(TEXTS), win, rtol=1e-6)
    # Its own two the other way round: the weak one's wins, not those of the strong one under its name.
    swapped = formats.read(folder, "routellm-bert", strong=WEAK, weak=STRONG)
    assert (swapped.models, swapped.strong, swapped.weak) == ((STRONG, WEAK), WEAK, STRONG)
    np.testing.assert_allclose(swapped.win_prob(TEXTS), loss, rtol=1e-6)
    renamed = formats.read(folder, "routellm-bert", strong="large", weak="small")
    assert (renamed.models, renamed.strong) == (("large", "small"), "large")
    np.testing.assert_array_equal(renamed.win_prob(TEXTS), router.win_prob(TEXTS))

    config = tmp_path / "config.yaml"
    config.write_text(f"bert: {{checkpoint_path: {folder}, num_labels: 2}}")
    with pytest.raises(InputError, match=r"bert.num_labels must be 3 \(strong wins, tie, weak wins\), got 2"):
        formats.read(config, "routellm-bert")
    config.write_text(f"bert: {{checkpoint_path: {folder}}}")
    assert formats.read(config, "routellm-bert").models == (STRONG, WEAK)
    formats.export(router, tmp_path / "exported", "hf")
    with pytest.raises(InputError, match=r"is an exported router, not RouteLLM's classifier: .* --format hf"):
        formats.read(tmp_path / "exported", "routellm-bert")
    change_json(folder / "tokenizer_config.json", truncation_side="left")
    assert formats.read(folder, "routellm-bert").featurizer.truncation == "left"
    with pytest.raises(InputError, match="expected 3 labels, got 2: yes, no"):
        formats.read(save_tiny_classifier(tmp_path / "two", ("yes", "no")), "routellm-bert")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("big", "small", "small"), "id2label gives the name 'small' to 2 labels"),
        (("big", "small", ""), "id2label must map '0', '1', ... to names"),
        (("big", "small", None), "id2label must map '0', '1', ... to names"),
    ],
)
def test_labels_that_name_no_models(tmp_path: Path, labels: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        formats.read(save_tiny_classifier(tmp_path / "hf", labels), "hf", strong="big", weak="small")


def test_a_dropout_of_the_classifier_that_is_none(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "hf", ("big", "small"))
    change_json(folder / "config.json", classifier_dropout=1)
    with pytest.raises(InputError, match=r"classifier_dropout must be a non-negative number below 1, got 1"):
        formats.read(folder, "hf", strong="big", weak="small")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    folder = save_tiny_classifier(tmp_path / "hf", ("big", "small"))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = value
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"weights must be finite numbers, got NaN or infinity in classifier\.bias"):
        formats.read(folder, "hf", strong="big", weak="small")
    factorization = random_tensors("released", model_dim=4, embed=6)
    factorization["P.weight"][3, 1] = value
    with pytest.raises(InputError, match=r"weights must be finite numbers, got NaN or infinity in P\.weight"):
        formats.read(write_checkpoint(tmp_path, factorization), "routellm-mf")


def test_three_labels_need_no_names(tmp_path: Path) -> None:
    labels = ("win", "tie", "loss")
    named = formats.read(save_tiny_classifier(tmp_path / "named", labels), "routellm-bert")
    nameless = formats.read(save_tiny_classifier(tmp_path / "nameless", labels, names=False), "routellm-bert")
    np.testing.assert_array_equal(nameless.win_prob(TEXTS), named.win_prob(TEXTS))
    with pytest.raises(InputError, match=r"classifier.*: expected shape \(16, 3\), got \(16, 2\)"):
        formats.read(save_tiny_classifier(tmp_path / "two", ("yes", "no"), names=False), "routellm-bert")
