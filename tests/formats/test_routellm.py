"""Routers in RouteLLM's format do there what they do here, or are not written."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, Router, features, formats, models
from routerjax.pretrained import routellm
from tests.routellm import random_tensors, reference_win_prob, unit_rows, write_checkpoint
from tests.routers import tiny_router, tiny_text_router


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    return formats.read(write_checkpoint(tmp_path_factory.mktemp("mf"), random_tensors("released")), "routellm-mf")


def test_the_tensors_come_back(router: Router, tmp_path: Path) -> None:
    assert formats.export(router, tmp_path / "out", "routellm")["model.safetensors"] <= 1e-6
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: leaf for name, leaf in random_tensors("released").items()}
    assert written.keys() == expected.keys()
    for name, leaf in expected.items():
        assert leaf.tobytes() == written[name].tobytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"dim": 128, "num_models": 64, "text_dim": 1536, "num_classes": 1, "use_proj": True}
    again = formats.read(tmp_path / "out", "routellm-mf")
    jax.tree.map(np.testing.assert_array_equal, again.variables, router.variables)


def test_models_in_another_order_find_their_rows(router: Router, tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(64)
    params = router.variables["params"]
    shuffled = dataclasses.replace(
        router,
        models=tuple(router.models[row] for row in order),
        variables={"params": {**params, "model_embedding": params["model_embedding"][order]}},
    )
    formats.export(shuffled, tmp_path / "out", "routellm")
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written["P.weight"], random_tensors("released")["P.weight"])


def test_the_written_file_scores_as_the_router(router: Router, tmp_path: Path) -> None:
    formats.export(router, tmp_path / "out", "routellm")
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    embedding = unit_rows(30)
    expected = reference_win_prob(tensors, embedding, 24, 36)
    given = features.Embeddings(embedding, router.featurizer.fingerprint)
    np.testing.assert_allclose(router.win_prob(given), expected, rtol=0, atol=1e-6)


def test_large_scores_are_allowed_their_rounding(router: Router, tmp_path: Path) -> None:
    params = router.variables["params"]
    steep = dataclasses.replace(router, variables={"params": {**params, "classifier": 300 * params["classifier"]}})
    assert 1e-6 < formats.export(steep, tmp_path / "out", "routellm")["model.safetensors"] < 1e-3


def test_other_forms_are_refused(router: Router, tmp_path: Path) -> None:
    kernel = np.zeros((384, 128), np.float32)
    narrow = {**router.variables["params"], "prompt_projection": {"kernel": kernel}}
    own_encoder = tiny_text_router(tmp_path, family="mf")
    refused = [
        (own_encoder, "RouteLLM's format has no place for an encoder"),
        (tiny_router(tmp_path), r"no place for bias=True, normalize_models=False: train with router attributes"),
        (
            dataclasses.replace(router, module=router.module.clone(normalize_models=False)),
            "no place for normalize_models=False: train",
        ),
        (
            dataclasses.replace(router, module=models.NearestNeighbors(num_models=64)),
            "holds matrix factorisations .* family knn",
        ),
        (
            dataclasses.replace(router, models=("new-model", *router.models[1:])),
            r"lacks 1 of them \(-\) and has 1 others \(\+\): - RWKV-4-Raven-14B, \+ new-model",
        ),
        (
            dataclasses.replace(router, featurizer=dataclasses.replace(router.featurizer, fingerprint="minilm")),
            "RouteLLM embeds prompts with openai:text-embedding-3-small .* would mean nothing",
        ),
        (
            dataclasses.replace(
                router,
                featurizer=dataclasses.replace(router.featurizer, known_width=384),
                variables={"params": narrow},
            ),
            r"\(1536 wide\), but this router was trained with .* \(384 wide\)",
        ),
    ]
    before = os.listdir(tmp_path)
    for other, message in refused:
        with pytest.raises(InputError, match=message):
            formats.export(other, tmp_path / "out", "routellm")
    assert os.listdir(tmp_path) == before
    with pytest.raises(InputError, match="exists already"):
        formats.export(router, tmp_path / "encoder", "routellm")


def test_a_file_that_differs_is_an_error_and_is_kept(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two rows exchanged: what a vocabulary out of order would write.
    swapped = (routellm.MODELS[1], routellm.MODELS[0], *routellm.MODELS[2:])
    original = Router.column
    monkeypatch.setattr(Router, "column", lambda self, name: original(self, swapped[routellm.MODELS.index(name)]))
    with pytest.raises(formats.VerificationError, match=r"win probabilities differ by .*e-0\d; it is kept as"):
        formats.export(router, tmp_path / "out", "routellm")
    assert os.listdir(tmp_path) == ["out.rejected"]
