"""Every family and every loss goes the whole way: battles, training, folder, loading, export."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, data, formats, load_router
from routerjax.calibration import fit_calibration
from routerjax.config import BattleSource, DataConfig, ExperimentConfig, FeatureConfig, RouterConfig, TrainingConfig
from routerjax.families import find_family
from routerjax.features import GivenFeaturizer, read_embeddings
from routerjax.likelihoods import LIKELIHOODS
from routerjax.pipeline import calibrate_router, train_router

WIDTH = 6


def config(folder: Path, *, family: str, **router: object) -> ExperimentConfig:
    """40 prompts with three battles each; with two models where the loss is of a pair."""
    num_models = 2 if LIKELIHOODS[str(router.get("loss", "bradley_terry"))].is_of_one_pair else 3
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((40, WIDTH)).astype(np.float32)
    prompts = [f"prompt number {row}" for row in range(40) for _ in range(3)]
    strength = (embedding @ rng.standard_normal((WIDTH, num_models)))[np.repeat(np.arange(40), 3)]
    a = rng.integers(num_models, size=120)
    b = (a + rng.integers(1, num_models, size=120)) % num_models
    margin = strength[np.arange(120), a] - strength[np.arange(120), b]
    both_bad = (np.abs(margin) <= 0.5) & (strength[np.arange(120), a] < 0)
    outcome = np.stack([margin > 0.5, (np.abs(margin) <= 0.5) & ~both_bad, margin < -0.5, both_bad], axis=1)
    if router.get("loss") != "grounded_rao_kupper":
        outcome = np.stack([outcome[:, 0], outcome[:, 1::2].any(axis=1), outcome[:, 2]], axis=1)
    names = np.asarray(["big", "small", "medium"])
    data.write_preferences(data.Preferences.from_names(prompts, names[a], names[b], outcome), folder / "b.parquet")
    np.save(folder / "e.npy", embedding)
    (folder / "e.npy.json").write_text(json.dumps({"fingerprint": "made up"}))
    return ExperimentConfig(
        data=DataConfig(root=str(folder), battles=(BattleSource(path="b.parquet"),), validation_fraction=0.2),
        features=FeatureConfig(embeddings="e.npy"),
        router=RouterConfig(family=family, strong="big", weak="small", **router),
        training=TrainingConfig(epochs=2, batch_size=16),
    )


@pytest.mark.parametrize(
    ("family", "router"),
    [
        *(("mf", {"loss": loss, "attributes": {"model_dim": 4}}) for loss in LIKELIHOODS),
        ("mf", {"loss": "davidson", "readout": "win", "attributes": {"model_dim": 4}}),
        ("sw", {"attributes": {"num_tiers": 2}}),
        ("sw", {"attributes": {"num_tiers": 0, "normalize": "train", "gamma": 3.0}}),
        ("knn", {"attributes": {"k": 5}}),
    ],
)
def test_from_battles_to_a_bundle(tmp_path: Path, family: str, router: dict[str, object]) -> None:
    trained = train_router(config(tmp_path, family=family, **router), tmp_path / "run")
    loaded = load_router(tmp_path / "run" / "router")
    assert (loaded.family, loaded.likelihood) == (trained.family, trained.likelihood)
    embeddings = read_embeddings(tmp_path / "e.npy")
    win_prob = loaded.win_prob(embeddings)
    np.testing.assert_array_equal(win_prob, trained.win_prob(embeddings))
    assert np.ptp(win_prob) > 0
    outcome = loaded.outcome_prob(embeddings)
    np.testing.assert_allclose(outcome.sum(axis=1), 1, atol=1e-5)
    ties = outcome[:, 1::2].sum(axis=1)
    assert outcome.shape[1] == loaded.likelihood.num_outcomes
    expected = {"half_tie": outcome[:, 0] + ties / 2, "win": outcome[:, 0]}[loaded.likelihood.readout]
    np.testing.assert_allclose(win_prob, expected, atol=1e-6)
    has_ties = loaded.likelihood.name != "bradley_terry"
    assert (outcome[:, 1] > 0).all() == has_ties
    is_of_one_pair = loaded.likelihood.is_of_one_pair
    columns = loaded.likelihood.output_names(loaded.models) if is_of_one_pair else loaded.models
    assert loaded.scores(embeddings).shape == (40, len(columns))
    if not is_of_one_pair:
        other = loaded.win_prob(embeddings, "small", "big")
        opposite = 1 - win_prob if loaded.likelihood.readout == "half_tie" else outcome[:, 2]
        np.testing.assert_allclose(other, opposite, atol=1e-5)
    differences = formats.export(loaded, tmp_path / "bundle", "stablehlo")
    assert differences["from_embedding"] <= 1e-6


def test_a_pair_within_one_tier_is_refused(tmp_path: Path) -> None:
    # One tier less than models: two of the three share one, and every prompt would have the win probability 0.5.
    made = config(tmp_path, family="sw", attributes={"num_tiers": 2})
    router = train_router(made, tmp_path / "run")
    tier = dict(zip(router.models, np.asarray(router.variables["memory"]["tier"]).tolist(), strict=True))
    (first, second) = (name for name in tier if list(tier.values()).count(tier[name]) == 2)
    with pytest.raises(InputError, match=r"fall into one tier \(of 2 models\).*take another num_tiers \(0 rates every"):
        router.with_pair(first, second)
    pair = dataclasses.replace(made.router, strong=first, weak=second)
    with pytest.raises(InputError, match="fall into one tier"):
        train_router(dataclasses.replace(made, router=pair), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_trains_nothing_takes_no_loss_with_ties(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sw trains nothing, so it takes no loss but bradley_terry; got 'davidson'"):
        train_router(config(tmp_path, family="sw", loss="davidson"), tmp_path / "run")


@pytest.mark.parametrize(
    ("family", "loss", "tells", "message"),
    [
        ("sw", "bradley_terry", True, "bradley_terry counts 9 battles whose answers are both bad as ties like others"),
        ("mf", "davidson", True, "davidson counts 9 battles whose answers are both bad as ties like others"),
        ("mf", "grounded_rao_kupper", False, "the battles do not tell ties of two bad answers from others, as"),
        ("mf", "davidson", False, None),
    ],
)
def test_a_run_says_what_becomes_of_ties_of_two_bad_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, loss: str, tells: bool, message: str | None
) -> None:
    caplog.set_level("INFO")
    made = config(tmp_path, family=family, attributes={"num_tiers": 2} if family == "sw" else {"model_dim": 4})
    made = dataclasses.replace(made, router=dataclasses.replace(made.router, loss=loss))
    if tells:
        battles = data.read_preferences(tmp_path / "b.parquet")
        outcome = np.pad(battles.outcome, ((0, 0), (0, 1)))
        outcome[:9] = np.eye(4)[3]
        (tmp_path / "b.parquet").unlink()
        data.write_preferences(dataclasses.replace(battles, outcome=outcome), tmp_path / "b.parquet")
    train_router(made, tmp_path / "run")
    messages = [text for text in caplog.messages if " bad" in text]
    assert len(messages) == (message is not None)
    assert not message or messages[0].startswith(message)


def test_three_labels_are_of_two_models(tmp_path: Path) -> None:
    wrong = config(tmp_path, family="mf", loss="davidson")
    wrong = ExperimentConfig(
        data=wrong.data,
        features=wrong.features,
        router=RouterConfig(family="mf", loss="three_labels", strong="big", weak="small"),
    )
    with pytest.raises(InputError, match="three_labels is of battles between two models, got 3"):
        train_router(wrong, tmp_path / "run")


GIVEN = GivenFeaturizer(source="e.npy", width=5, fingerprint="f")


@pytest.mark.parametrize(
    ("family", "attributes", "message"),
    [
        ("sw", {"normalize": "qurey"}, "sw.normalize must be one of query, train, got 'qurey'"),
        ("sw", {"gamma": 0.0}, "sw.gamma must be a positive number, got 0.0"),
        ("knn", {"k": 2.5}, "knn.k must be an integer in .*, got 2.5"),
        *(
            ("mf", {"model_dim": size}, rf"mf.model_dim must be an integer in \[1, 65536\], got {size}")
            for size in (-3, 0, 2**31, 10**30)
        ),
        ("mf", {"noise_std": -0.1}, "mf.noise_std must be a number of at least 0, got -0.1"),
        ("knn", {"k": 2**31}, "knn.k must be an integer in .*, got 2147483648"),
        ("sw", {"num_tiers": -1}, "sw.num_tiers must be an integer in .*, got -1"),
        ("sw", {"num_models": 3}, "sw has no attribute 'num_models'"),
        ("mf", {"bias": 1}, "mf.bias must be True or False, got 1"),
    ],
)
def test_attributes_of_another_kind_are_refused(family: str, attributes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_family(family).make_module(num_outputs=3, attributes=attributes, featurizer=GIVEN)


@pytest.mark.parametrize("readout", ["half_tie", "win", "decisive"])
def test_calibration_counts_ties_as_the_readout_does(tmp_path: Path, readout: str) -> None:
    made = config(tmp_path, family="mf", loss="davidson", readout=readout, attributes={"model_dim": 4})
    router = train_router(made, tmp_path / "run")
    battles = data.read_preferences(tmp_path / "b.parquet")
    big, small = (battles.models.index(name) for name in ("big", "small"))
    forward = (battles.model_a == big) & (battles.model_b == small)
    of_pair = battles.select(forward | ((battles.model_a == small) & (battles.model_b == big)))
    outcome = np.where((of_pair.model_a == big)[:, None], of_pair.outcome, of_pair.outcome[:, ::-1])
    embeddings = read_embeddings(tmp_path / "e.npy")
    rows = np.asarray([int(prompt.split()[-1]) for prompt in of_pair.prompts])
    keep = outcome[:, 1] < 1 if readout == "decisive" else np.ones(len(of_pair), bool)
    label = {
        "half_tie": outcome[:, 0] + outcome[:, 1] / 2,
        "win": outcome[:, 0],
        "decisive": outcome[:, 0] / np.maximum(outcome[:, 0] + outcome[:, 2], 1e-9),
    }[readout]
    expected = fit_calibration(router.win_prob(embeddings)[rows][keep], label[keep], method="isotonic")

    class Reading(GivenFeaturizer):
        """Featurizer that knows the embeddings of these texts."""

        def query(self, prompts: list[str], **_: object) -> dict[str, np.ndarray]:
            return {"embedding": embeddings.embedding[[int(prompt.split()[-1]) for prompt in prompts]]}

    reading = dataclasses.replace(router, featurizer=Reading(source="e.npy", width=5, fingerprint="made up"))
    actual = calibrate_router(reading, battles, method="isotonic", cache=None).variables["calibration"]
    assert set(actual) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, atol=1e-6)
