"""The format ``vector``: matrix factorisation for one pair, by numpy alone, where that is exact."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import InputError, Router, formats
from routerjax.formats.vector import Vector
from routerjax.likelihoods import COLLECTION, make_likelihood
from routerjax.policies import CostAware
from routerjax.runtime import BundleError, load
from tests.formats.matrix import between, differences, prompts
from tests.routers import tiny_memory_router, tiny_router


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    made = tiny_router(tmp_path_factory.mktemp("router"), attributes={"model_dim": 8, "normalize_models": True})
    return made.with_threshold(between(made.win_prob(prompts()))[4])


CALIBRATIONS = {
    "none": {},
    "platt": {"slope": 2.0, "intercept": 0.3},
    "isotonic": {"knots": [0.1, 0.4, 0.4, 0.9], "values": [0.0, 0.3, 0.5, 1.0]},
}


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_where_nothing_but_numpy_can_be_imported(router: Router, calibration: str, tmp_path: Path) -> None:
    leaves = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in CALIBRATIONS[calibration].items()}
    calibrated = {**router.variables, **({"calibration": leaves} if leaves else {})}
    router = dataclasses.replace(router, variables=calibrated)
    largest = differences(router, tmp_path / "bundle", "vector")
    assert largest["win_prob"] <= 1e-5
    assert largest["decisions"] == 0
    vector = np.load(tmp_path / "bundle" / "vector.npy")
    assert (vector.dtype, vector.shape) == (np.float32, (16,))
    with pytest.raises(BundleError, match="this bundle holds the win probability of one pair alone"):
        load(tmp_path / "bundle").scores(embedding=np.ones((1, 16)))
    with pytest.raises(BundleError, match=r"this router takes embeddings, not text: give embedding=\.\.\."):
        load(tmp_path / "bundle").route("a prompt")


def test_ties_under_rao_kupper(router: Router, tmp_path: Path) -> None:
    variables = {**router.variables, COLLECTION: {"tie": jnp.float32(0.7)}}
    tied = dataclasses.replace(router, likelihood=make_likelihood("rao_kupper"), variables=variables)
    assert differences(tied, tmp_path / "bundle", "vector")["win_prob"] <= 1e-5


def test_what_one_vector_does_not_hold_is_refused_by_name(router: Router, tmp_path: Path) -> None:
    costs = dataclasses.replace(router, policy=CostAware({"big": 3.0, "medium": 2.0, "small": 1.0}, 0.1))
    tied = {**router.variables, COLLECTION: {"tie": jnp.float32(0.7)}}
    davidson = dataclasses.replace(router, likelihood=make_likelihood("davidson"), variables=tied)
    refused = {
        "one vector holds matrix factorisation of given embeddings .mf. alone, got knn": tiny_memory_router(tmp_path),
        "one vector is of a pair of models, and the policy cost_aware has none": costs,
        "one vector holds the losses bradley_terry, and rao_kupper .*; got davidson": davidson,
    }
    for message, other in refused.items():
        with pytest.raises(InputError, match=message):
            formats.export(other, tmp_path / "bundle", "vector")
    assert not (tmp_path / "bundle").exists()


def test_an_export_that_is_interrupted_leaves_nothing(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("contents", "verify"):
        with monkeypatch.context() as patch:
            patch.setattr(Vector, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                formats.export(router, tmp_path / "bundle", "vector")
        assert not list(tmp_path.iterdir())


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
