"""Routers that read text themselves: trained, stored, scored and exported as every other router is."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, features, load_router, save_router
from routerjax.cli import main
from routerjax.config import ExperimentConfig, override
from routerjax.families import pretrained_params
from routerjax.pipeline import load_config, train_router
from routerjax.router.outputs import jitted_module
from tests.encoders import TEXTS, save_tiny_encoder
from tests.routers import tiny_router, tiny_text_router

PROMPTS = [*TEXTS, "poem " * 100, "", "half an emoji \ud83d", "poem"]
BERT = [
    *("router.family=bert", "router.attributes.head=linear", "optimizer.encoder_rate=0.5"),
    *("training.epochs=2", "training.batch_tokens=256", "training.micro_batches=2"),
    *(f"features.encoder_attributes.{choice}" for choice in ("dtype=bfloat16", "remat=True", "scan_layers=True")),
]

TRAINED_ONCE = pytest.mark.xdist_group("trained text router")


@pytest.fixture(scope="module")
def config(arena: Path) -> ExperimentConfig:
    """Without attributes, and with prompts of one static length, so that little is compiled."""
    return override(load_config(arena / "config.py"), ["router.attributes={}", "features.max_length=16"])


@pytest.fixture(scope="module")
def trained(config: ExperimentConfig, arena: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run``, trained from the command line, and ``cache``, in which it tokenised."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROUTERJAX_CACHE", str(folder / "cache"))
        settings = ["router.attributes={}", "features.max_length=16", *BERT]
        train = ["train", str(arena / "config.py"), "--set", *settings, "--output", str(folder / "run")]
        assert main(train) == 0
    return folder


@pytest.mark.parametrize(
    ("family", "loss"),
    [
        *(("mf", "davidson"), ("bert", "three_outcome"), ("bert", "three_labels")),
        *(("causal", "bradley_terry"), ("causal", "grounded_rao_kupper")),
    ],
)
def test_it_is_saved_loaded_and_scores_each_prompt_as_if_alone(tmp_path: Path, family: str, loss: str) -> None:
    router = tiny_text_router(tmp_path, family=family, loss=loss)
    win_prob = router.win_prob([*PROMPTS, PROMPTS[0]])
    assert np.ptp(win_prob) > 1e-4
    assert win_prob[-1] == win_prob[0]
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(router.win_prob([prompt]), win_prob[row], rtol=0, atol=1e-6)
    with jax.default_matmul_precision("highest"):
        scores = jax.jit(router.module.apply)(router.variables, router.featurizer.query(PROMPTS))[:, :3]
    np.testing.assert_allclose(router.scores(PROMPTS), scores, rtol=0, atol=1e-5)
    assert router.win_prob([]).shape == (0,)
    assert router.scores([]).shape == (0, 3)  # models, or labels of two models
    save_router(router, tmp_path / "saved")
    loaded = load_router(tmp_path / "saved")
    assert loaded.module == router.module
    np.testing.assert_array_equal(loaded.win_prob([*PROMPTS, PROMPTS[0]]), win_prob)


def test_a_family_of_embeddings_computes_what_it_does_on_those_of_the_encoder(tmp_path: Path) -> None:
    router = tiny_text_router(tmp_path, family="mf")
    head = tiny_router(tmp_path, attributes={}, variables={"params": router.variables["params"]["head"]})
    np.testing.assert_allclose(router.scores(TEXTS), head.scores(TEXTS), rtol=0, atol=1e-5)


def test_compilations_are_bounded_and_one_prompt_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = tiny_text_router(tmp_path)
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(["poem", "prove", "what"], length)) for length in rng.integers(1, 80, 400)]
    jitted_module.cache_clear()
    for start in (0, 7, 250):
        router.win_prob(prompts[start:])
    compiled = jitted_module(router.module)
    lengths = router.featurizer.tokenizer.lengths
    most = sum((features.tokenizer.TOKENS_ON_CPU // length).bit_length() for length in lengths)
    assert 2 <= (size := compiled._cache_size()) <= most
    router.scores(prompts)
    router.outcome_prob(prompts)
    router.win_prob(prompts, router.weak, router.strong)
    router.with_threshold(0.5).route(prompts)
    calibration = {"slope": np.float32(2.0), "intercept": np.float32(0.5)}
    dataclasses.replace(router, variables={**router.variables, "calibration": calibration}).win_prob(prompts)
    assert compiled._cache_size() == size  # whatever is read from the scores
    shapes = []

    def seen(_: object) -> Callable:
        def score(variables: dict, query: dict) -> jax.Array:
            shapes.append(query["token_ids"].shape)
            return compiled(variables, query)

        return score

    monkeypatch.setattr("routerjax.router.outputs.jitted_module", seen)
    router.win_prob(["poem"])
    router.win_prob(["poem " * 60])
    assert shapes == [(1, lengths[0]), (1, lengths[-1])]


@TRAINED_ONCE
def test_train_evaluate_calibrate_and_export_from_the_command_line(
    trained: Path, arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "run"
    assert {path.name for path in run.iterdir()} == {"run.json", "knn", "router", "training"}
    rows = [json.loads(line) for line in (run / "training" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    router = load_router(run / "router")
    assert router.featurizer.kind == "tokens"
    started = features.load_tokens(arena / "encoder", chosen={"scan_layers": True})
    assert router.featurizer.encoder == started.encoder  # bfloat16 and remat were choices of the training

    benchmark, names = str(arena / "benchmark.parquet"), ["--strong", "sim-large", "--weak", "sim-small"]
    evaluate = ["--benchmark", benchmark, *names, "--samples", "20", "--encoder", str(arena / "encoder"), "--output"]
    # The encoder is for the control, and the router has its own.
    assert main(["evaluate", str(run), *evaluate, str(tmp_path / "evaluated")]) == 0
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert {"run", "knn", "random", "oracle"} <= set(results["benchmarks"][0]["routers"])
    calibrate = ["calibrate", str(run), "--prompts", benchmark, "--strong-share", "0.3"]
    assert main([*calibrate, "--output", str(tmp_path / "calibrated")]) == 0
    bundle = str(tmp_path / "bundle")
    assert main(["export", str(tmp_path / "calibrated"), "--format", "stablehlo", "--output", bundle]) == 0
    assert "from_text: win probabilities and scores differ" in capsys.readouterr().out
    assert main(["export", str(run), "--format", "hf", "--output", str(tmp_path / "hf")]) == 2
    assert "head='architecture'" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "routellm", "--output", str(tmp_path / "routellm")]) == 2
    assert "encoder.safetensors" not in {path.name for path in (tmp_path / "bundle").iterdir()}


@TRAINED_ONCE
def test_an_encoder_for_a_router_that_has_its_own_is_refused(
    trained: Path, arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router, encoder = str(trained / "run" / "router"), ["--encoder", str(arena / "encoder")]
    benchmark, output = str(arena / "benchmark.parquet"), ["--output", str(tmp_path / "output")]
    for command in (
        ["score", router, "--input", benchmark],
        ["calibrate", router, "--prompts", benchmark, "--strong-share", "0.3", *output],
        ["export", router, "--format", "stablehlo", *output],
        ["evaluate", router, "--benchmark", benchmark, "--strong", "sim-large", "--weak", "sim-small", *output],
    ):
        assert main([*command, *encoder]) == 2
        printed = capsys.readouterr().err
        assert re.fullmatch(r"routerjax: error: .* reads? text .*: leave --encoder out\n", printed), printed
    assert not (tmp_path / "output").exists()


def test_an_encoder_trained_under_matrix_factorisation(config: ExperimentConfig, tmp_path: Path) -> None:
    changes = [
        "features.train_encoder=True",
        "training.epochs=1",
        "router.loss=davidson",
        "data.validation_fraction=0.0",
    ]
    changes += ["features.encoder_attributes={'dropout_rate': 0.0}"]
    router = train_router(override(config, [*changes, "optimizer.frozen_layers=1"]), tmp_path / "run")
    before = features.load_tokens(config.features.encoder, max_length=16, chosen={"dropout_rate": 0.0}, embeds=True)
    assert router.featurizer.to_dict() == before.to_dict()
    assert router.featurizer.normalize
    started = pretrained_params(router.module, Path(config.features.encoder), key=jax.random.key(0))
    trained, old = (tree["encoder"]["encoder"] for tree in (router.variables["params"], started))
    jax.tree.map(np.testing.assert_array_equal, trained["layer_0"], old["layer_0"])  # frozen
    assert (trained["layer_1"]["mlp_in"]["kernel"] != old["layer_1"]["mlp_in"]["kernel"]).mean() > 0.9
    loaded = load_router(tmp_path / "run" / "router")
    assert loaded.module == router.module
    np.testing.assert_array_equal(loaded.win_prob(PROMPTS), router.win_prob(PROMPTS))


@TRAINED_ONCE
def test_an_interrupted_run_goes_on(
    config: ExperimentConfig, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTERJAX_CACHE", str(trained / "cache"))
    # What a run that is killed in its second epoch leaves.
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    newest = max((run / "training" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    for folder in (run / "router", run / "knn", newest):
        shutil.rmtree(folder)
    resumed = train_router(override(config, BERT), run, resume=True)
    whole = load_router(trained / "run" / "router")
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)


def test_prompts_that_are_not_text(tmp_path: Path) -> None:
    router = tiny_text_router(tmp_path)
    for refused in (router.win_prob, router.scores, router.featurizer.query):
        with pytest.raises(InputError, match=r"row 2: a prompt must be text, got None"):
            refused(["a", "a", None])
    tokenizer = router.featurizer.tokenizer
    for refused in (tokenizer.token_ids, lambda prompts: features.read_prompts(tokenizer, prompts)):
        with pytest.raises(InputError, match=r"row 1: a prompt must be text, got 3"):
            refused(["a", 3])
        with pytest.raises(InputError, match=r"got one text; write \[prompt\]"):
            refused("a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["router.family=knn", "features.train_encoder=True"], "knn trains nothing, so it cannot train an encoder"),
        (["features.encoder_attributes.remat=True"], "of an encoder that is trained: set features.train_encoder"),
        ([*BERT, "features.encoder_attributes.depth=2"], "takes dropout_rate, .*got 'depth'"),
        ([*BERT, "features.encoder_attributes.dtype=float16"], "must be one of float32, bfloat16, got 'float16'"),
        (
            [*BERT, "features.encoder_attributes.dropout_rate=1.0"],
            r"dropout_rate must be a number in \[0, 1\), got .1.0.",
        ),
        ([*BERT, "router.attributes.head=cls"], "bert.head must be one of architecture, linear, mean, got 'cls'"),
        ([*BERT, "router.attributes.dropout_rate=1.0"], r"bert.dropout_rate must be a number in \[0, 1\), got .1.0."),
        ([*BERT, "features.max_length=65"], r"max_length must be in \[2, 64\]"),
        ([*BERT, "features.embeddings=given.npy"], "have no encoder that could be trained"),
        ([*BERT, "features.encoder=openai:any"], "no folder openai:any"),
        ([*BERT, "optimizer.frozen_layers=3"], "frozen_layers must be at most the encoder's 2, got 3"),
        (["optimizer.frozen_layers=1"], "are for routers that train an encoder"),
        (["training.micro_batches=2"], "micro_batches must be 1 for a router of embeddings, got 2"),
        (["training.devices=pmap", "training.batch_size=12"], r"batch size \(12\) must be divisible by device count"),
        ([*BERT, "features.encoder=ENCODER"], "does not hold the expected tensors .* encoder/layer_2"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_encoded_or_written(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], message: str
) -> None:
    shutil.copytree(config.features.encoder, tmp_path / "encoder")
    described = (tmp_path / "encoder" / "config.json").read_text()
    deeper = described.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (tmp_path / "encoder" / "config.json").write_text(deeper)
    changes = [change.replace("ENCODER", str(tmp_path / "encoder")) for change in changes]
    monkeypatch.delattr(features.SentenceFeaturizer, "encode")
    with pytest.raises(InputError, match=message):
        train_router(override(config, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_queries(tmp_path: Path) -> None:
    router = tiny_text_router(tmp_path)
    with pytest.raises(InputError, match="bert reads text with an encoder of its own"):
        tiny_router(tmp_path, family="bert", attributes={})
    with pytest.raises(InputError, match="this router reads text itself"):
        router.featurizer.at("elsewhere")
    with pytest.raises(InputError, match="the embeddings have fingerprint"):
        router.win_prob(features.Embeddings(np.zeros((1, 16), np.float32), "other"))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_tokenizer_configuration_is_said_before_training(tmp_path: Path, content: str) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"encoder: tokenizer_config.json (is not JSON|must hold a JSON object)"):
        features.load_tokens(folder)


def test_bfloat16_is_a_choice_of_training_alone(tmp_path: Path) -> None:
    plain = tiny_text_router(tmp_path)
    half = tiny_text_router(tmp_path, chosen={"dtype": "bfloat16", "remat": True})
    assert half.module == plain.module
    assert half.featurizer.to_dict() == plain.featurizer.to_dict()
    np.testing.assert_array_equal(half.scores(PROMPTS), plain.scores(PROMPTS))
