"""Routers: scores, the folder they are saved in, and what is refused."""

import dataclasses
import json
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, families, features, load_router, save_router
from tests.encoders import save_tiny_encoder
from tests.routers import NAMES, tiny_memory_router, tiny_router

PROMPTS = ["what is the capital", "prove that primes are infinite", "", "write a poem", "x"]


def test_win_prob_is_the_sigmoid_of_the_margin_of_any_pair(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    scores = router.scores(PROMPTS)
    assert scores.shape == (5, 3)
    assert scores.dtype == np.float32
    embedding = router.featurizer.encode(PROMPTS)
    np.testing.assert_allclose(scores, router.module.apply(router.variables, {"embedding": embedding}), atol=1e-6)
    sigmoid = 1 / (1 + np.exp(-(scores[:, 0] - scores[:, 2]).astype(float)))
    np.testing.assert_allclose(router.win_prob(PROMPTS), sigmoid, atol=1e-6)
    reverse = router.win_prob(PROMPTS, strong="small", weak="big")
    np.testing.assert_allclose(reverse, 1 - sigmoid, atol=1e-6)
    assert router.win_prob(PROMPTS, "medium").shape == (5,)
    assert router.win_prob([]).shape == (0,)
    given = features.Embeddings(embedding, router.featurizer.fingerprint)
    np.testing.assert_array_equal(router.win_prob(given), router.win_prob(PROMPTS))


@pytest.mark.parametrize("threshold", [None, 0.25, math.inf])
def test_saved_and_loaded_is_the_same(tmp_path: Path, threshold: float | None) -> None:
    router = tiny_router(tmp_path, threshold=threshold)
    save_router(router, tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == ["router.json", "router.safetensors"]
    loaded = load_router(tmp_path / "saved")
    for field in dataclasses.fields(router):
        if field.name != "variables":
            assert getattr(loaded, field.name) == getattr(router, field.name), field.name
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, router.variables)
    np.testing.assert_array_equal(loaded.win_prob(PROMPTS), router.win_prob(PROMPTS))
    json.loads((tmp_path / "saved" / "router.json").read_text(), parse_constant=pytest.fail)
    with pytest.raises(InputError, match="exists already"):
        save_router(router, tmp_path / "saved")


def test_a_memory_is_saved_with_it(tmp_path: Path) -> None:
    router = tiny_memory_router(tmp_path)
    save_router(router, tmp_path / "knn")
    embedding = features.Embeddings(np.random.default_rng(0).standard_normal((4, 5)), "f")
    np.testing.assert_array_equal(load_router(tmp_path / "knn").win_prob(embedding), router.win_prob(embedding))


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    save_router(tiny_router(tmp_path), tmp_path / "saved")
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"refused: the encoder .*other has fingerprint \w{16}, but this router"):
        load_router(tmp_path / "saved", encoder=str(other)).win_prob(PROMPTS)
    moved = tmp_path / "moved"
    (tmp_path / "encoder").rename(moved)
    with pytest.raises(InputError, match="no folder"):
        load_router(tmp_path / "saved").win_prob(PROMPTS)
    assert load_router(tmp_path / "saved", encoder=str(moved)).win_prob(PROMPTS).shape == (5,)


def test_other_embeddings_are_refused(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    with pytest.raises(InputError, match="refused: the embeddings have fingerprint text-embedding, but"):
        router.win_prob(features.Embeddings(np.ones((1, 16)), "text-embedding"))
    with pytest.raises(InputError, match="embeddings must be 16 wide, as in training, got 3"):
        router.win_prob(features.Embeddings(np.ones((1, 3)), router.featurizer.fingerprint))
    spec = features.GivenFeaturizer(source="mine.npy", width=16, fingerprint="f")
    with pytest.raises(InputError, match=r"trained on given embeddings \(mine.npy\) and cannot read text"):
        tiny_router(tmp_path, featurizer=spec).win_prob(PROMPTS)


def test_names_are_checked_and_the_nearest_is_named(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    unknown = r"'Bigg' is not one of the router's 3 models \(did you mean 'big'\?\): big, medium, small$"
    with pytest.raises(InputError, match=unknown):
        router.win_prob(PROMPTS, strong="Bigg")
    with pytest.raises(InputError, match="3 is not one of the router's 3 models"):
        router.win_prob(PROMPTS, strong=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="'' is not one of the router's 3 models"):
        router.win_prob(PROMPTS, strong="")
    with pytest.raises(InputError, match="prompts must be a sequence of texts, got one text"):
        router.win_prob("what")
    with pytest.raises(InputError, match="strong and weak must be different models, got 'big' for both"):
        tiny_router(tmp_path, weak="big")
    with pytest.raises(InputError, match=r"the threshold must lie in \[0, 1\]"):
        tiny_router(tmp_path, threshold=1.5)
    with pytest.raises(InputError, match=r"family must be one of .*mf.*, got 'fm' \(did you mean 'mf'\?\)"):
        families.find_family("fm")
    with pytest.raises(InputError, match=r"mf has no attribute 'model_dims' \(did you mean 'model_dim'\?\)"):
        tiny_router(tmp_path, attributes={"model_dims": 3})
    assert router.models == NAMES


@pytest.mark.parametrize(
    "prompts", [(prompt for prompt in PROMPTS), iter(PROMPTS), set(PROMPTS), dict.fromkeys(PROMPTS), None, 3, b"what"]
)
def test_prompts_have_an_order_and_can_be_read_twice(tmp_path: Path, prompts: object) -> None:
    kind = type(prompts).__name__
    with pytest.raises(InputError, match=f"prompts must be a sequence of texts, such as a list, got {kind}"):
        tiny_router(tmp_path).win_prob(prompts)  # pyright: ignore[reportArgumentType]


def test_what_is_no_probability_is_refused_with_its_row(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    params = {**router.variables["params"], "classifier": np.full(8, np.nan, np.float32)}
    broken = dataclasses.replace(router, variables={"params": params})
    message = r"row 0 \('what is the capital'\): the router's {} must be in \[0, 1\], got nan, and so in 5 of 5 rows"
    with pytest.raises(InputError, match=message.format("win probability")):
        broken.win_prob(PROMPTS)
    with pytest.raises(InputError, match=message.format("probability of an outcome")):
        broken.outcome_prob(PROMPTS)
    with pytest.raises(InputError, match=r"row 0 \(.*the router's score must be finite, got nan, and so in 5 of 5"):
        broken.scores(PROMPTS)
    # Finite weights and finite embeddings whose product is not.
    embedding = np.ones((3, 16), np.float32)
    embedding[1, 0] = np.finfo(np.float32).max
    with pytest.raises(
        InputError, match=r"row 1: the router's win probability must be in \[0, 1\], got nan, and so in 1"
    ):
        router.win_prob(features.Embeddings(embedding, router.featurizer.fingerprint))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("big", "small", "big"), "'big' among 3"),
        (("big", "small", ""), "'' among 3"),
        (("big",), r"\['big'\]"),
    ],
)
def test_models_have_names_of_their_own(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=rf"must be two or more different names, none of them empty, got {message}"):
        tiny_router(tmp_path, models=names)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = tiny_router(tmp_path)
    before = sorted(os.listdir(tmp_path))

    def no_space(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_space)
        with pytest.raises(OSError, match="No space left"):
            save_router(router, tmp_path / "saved")
    assert sorted(os.listdir(tmp_path)) == before
