"""Scorers of texts for the server and the plug-ins: a router and a bundle of it make the same decisions."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import InputError, Router, formats, runtime
from routerjax.policies import CostAware
from routerjax.router import save_router
from routerjax.runtime import NoScoreError
from routerjax.serving.app import Server
from routerjax.serving.config import read_config
from routerjax.serving.text_scoring import BundleScorer, RouterScorer, open_scorer
from tests.routers import NAMES
from tests.serving.servers import Running, serving, settings
from tests.serving.upstream import Upstream

TEXTS = ("what is the capital of this country?", "", "prove " * 40, "ünïcode ✓", "half \ud83d", "a b c")


@pytest.fixture(scope="module")
def bundle(small_router: Router, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "stablehlo"
    formats.export(small_router, path, "stablehlo")
    return path


def test_a_bundle_scores_as_its_router(small_router: Router, bundle: Path) -> None:
    ours, other = RouterScorer(small_router), open_scorer(bundle)
    assert isinstance(other, BundleScorer)
    assert (other.policy, other.models, other.choices) == (small_router.policy, NAMES, ("big", "small"))
    assert list(other.warm_up()) == [(1, 16), (1, 32)]
    expected = small_router.win_prob(TEXTS)
    for scorer in (ours, other):
        outputs = scorer(TEXTS)
        np.testing.assert_allclose([each.win_prob for each in outputs], expected, atol=1e-5)
        assert [scorer.choose(each, scorer.policy).model for each in outputs] == small_router.route(TEXTS)
        assert scorer.choose(outputs[0], scorer.at(0.0)).model == "big"
        assert scorer.choose(outputs[0], scorer.at(math.inf))[::2] == ("small", math.inf)


def test_a_bundle_of_many_models_chooses_as_its_router(small_router: Router, tmp_path: Path) -> None:
    costs = CostAware(dict(zip(NAMES, small_router.scores(TEXTS).mean(axis=0).tolist(), strict=True)), cost_weight=1.0)
    router = dataclasses.replace(small_router, policy=costs)
    formats.export(router, tmp_path / "bundle", "stablehlo")
    expected = router.scores(TEXTS)
    for scorer in (RouterScorer(router), open_scorer(tmp_path / "bundle")):
        outputs = scorer(TEXTS)
        assert [scorer.choose(each, scorer.at(None)).model for each in outputs] == router.route(TEXTS)
        assert scorer.choices == NAMES
        np.testing.assert_allclose([list((each.scores or {}).values()) for each in outputs], expected, atol=1e-5)
        with pytest.raises(InputError, match="cost_aware has no pair of models, and so no threshold"):
            scorer.at(0.5)


def test_scores_that_are_not_finite_are_none(
    small_router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), small_router.variables)
    with pytest.raises(NoScoreError, match="no finite score of this prompt"):
        RouterScorer(dataclasses.replace(small_router, variables=broken))(TEXTS)
    formats.export(small_router, tmp_path / "bundle", "stablehlo")
    nothing = {"win_prob": np.full(1, np.nan, np.float32), "scores": np.zeros((1, 3)), "model": np.zeros(1, np.int32)}
    monkeypatch.setitem(runtime.ENGINES, "stablehlo", lambda bundle: {"from_token_ids": lambda query: nothing})
    scorer = open_scorer(tmp_path / "bundle")
    with pytest.raises(NoScoreError, match="no finite probability"):
        scorer(TEXTS[:1])


def test_options_that_nothing_uses_are_refused(small_router: Router, bundle: Path, tmp_path: Path) -> None:
    save_router(small_router, tmp_path / "router")
    formats.export(small_router, tmp_path / "vector", "vector")
    for path, options, message in (
        (bundle, {"strong": "medium"}, "is a bundle, of one pair and with its encoder"),
        (bundle, {"encoder": "somewhere"}, "is a bundle, of one pair and with its encoder"),
        (bundle, {"threads": 2}, "is computed by jax, which has its own threads: leave threads out"),
        (tmp_path / "router", {"threads": 2}, "is computed by jax, which has its own threads: leave threads out"),
        (tmp_path / "vector", {}, "takes embeddings, not text: "),
        *((bundle, {"threads": threads}, "threads must be an integer in") for threads in (0, -1, True, 1.5, 10**12)),
        (bundle, {"threshold": 2.0}, "the threshold must lie in"),
        (bundle, {"treshold": 0.5}, "the option.*did you mean 'threshold'"),
    ):
        with pytest.raises(InputError, match=message):
            open_scorer(path, **options)


def test_a_server_of_a_bundle_decides_as_that_of_its_router(
    server: Running, bundle: Path, big: Upstream, small: Upstream, tmp_path: Path
) -> None:
    with serving(open_scorer(bundle), tmp_path, settings(big, small)) as started:
        decisions = [each.client.post("/route", json={"prompts": list(TEXTS[:4])}).json() for each in (started, server)]
        for one, other in zip(*(each["decisions"] for each in decisions), strict=True):
            assert one == {**other, "win_prob": pytest.approx(other["win_prob"], abs=1e-5)}
        assert started.chat("hello", "router-0.0").headers["x-routerjax-model"] == "big"
        assert "as a bundle in stablehlo" in started.client.get("/status").json()["about"]


def test_a_bundle_without_a_threshold_is_refused(small_router: Router, tmp_path: Path) -> None:
    formats.export(small_router.with_threshold(None), tmp_path / "bundle", "stablehlo")
    (tmp_path / "serve.yaml").write_text(json.dumps({"models": {name: {"base_url": "http://h/v1"} for name in NAMES}}))
    config = read_config(tmp_path / "serve.yaml")
    with pytest.raises(InputError, match="this router has no threshold yet"):
        Server(open_scorer(tmp_path / "bundle"), config)
    Server(open_scorer(tmp_path / "bundle", threshold=0.5), config)


@pytest.mark.onnx
@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_a_server_of_an_onnx_bundle(
    small_router: Router, big: Upstream, small: Upstream, tmp_path: Path, activations: str
) -> None:
    options = {"weights": "int8", "activations": "int8"} if activations == "int8" else {}
    formats.export(small_router, tmp_path / "bundle", "onnx", options=options)
    bound = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["tolerance"]["from_text"]
    expected = small_router.win_prob(TEXTS[:4])
    with serving(open_scorer(tmp_path / "bundle", threads=2), tmp_path, settings(big, small)) as started:
        decisions = started.client.post("/route", json={"prompts": list(TEXTS[:4])}).json()["decisions"]
        np.testing.assert_allclose([each["win_prob"] for each in decisions], expected, atol=bound)
        assert started.chat("hello", "router-1.0").headers["x-routerjax-model"] == "small"
