"""A policy of another package is saved, loaded in a fresh process, scored by the command line and exported."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, Router, formats, load_router, save_router
from routerjax.cli import main
from routerjax.policies import POLICIES, CostAware, Threshold, make_policy
from tests.routers import tiny_router

PROMPTS = ["prove it", "a poem", "translate this", "why is the sky blue"]
PACKAGE = """
import dataclasses

import jax.numpy as jnp

from routerjax.policies import Policy


@dataclasses.dataclass(frozen=True)
class Cheapest(Policy):
    name = "cheapest"

    order: tuple[str, ...]
    at_least: float = 0.5

    def require_models(self, models):
        if set(self.order) != set(models):
            raise ValueError("other models")

    def choose(self, models, scores, win_prob):
        chosen = jnp.full(scores.shape[:1], models.index(self.order[-1]))
        for model in reversed(self.order[:-1]):
            is_good = win_prob(model, self.order[-1]) >= self.at_least
            chosen = jnp.where(is_good, models.index(model), chosen)
        return chosen
"""
LOAD = """
import json, sys
from routerjax import load_router
print(json.dumps(load_router(sys.argv[1]).route(sys.argv[2:])))
"""


@pytest.fixture(autouse=True)
def site(install: Callable[..., None]) -> None:
    """The package is installed."""
    points = "[routerjax.policies]\ncheapest = cheap_policy:Cheapest\nbroken = cheap_broken:Policy\n"
    install(points, cheap_policy=PACKAGE, cheap_broken="raise RuntimeError('no licence\\nfor this')")


def expected_choice(router: Router, at_least: float) -> list[str]:
    small, medium = (router.win_prob(PROMPTS, model, "big") for model in ("small", "medium"))
    by_row = zip(small, medium, strict=True)
    return ["small" if s >= at_least else "medium" if m >= at_least else "big" for s, m in by_row]


def test_a_policy_of_another_package_goes_all_the_way(tmp_path: Path) -> None:
    at_least = float(np.median(tiny_router(tmp_path).win_prob(PROMPTS, "small", "big")))
    policy = make_policy("cheapest", order=["small", "medium", "big"], at_least=at_least)
    router = tiny_router(tmp_path, policy=policy)
    expected = expected_choice(router, at_least)
    assert len(set(expected)) > 1
    assert router.route(PROMPTS) == expected
    save_router(router, tmp_path / "router")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "router"), *PROMPTS]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout) == expected
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    files = ["--input", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "scored.jsonl")]
    assert main(["score", str(tmp_path / "router"), *files]) == 0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert scored == [{"prompt": prompt, "model": model} for prompt, model in zip(PROMPTS, expected, strict=True)]

    formats.export(router, tmp_path / "bundle", "stablehlo", prompts=PROMPTS)
    (tmp_path / "site" / "cheap_policy.py").unlink()  # a bundle needs no policy's code
    command = [sys.executable, "-I", str(tmp_path / "bundle" / "routerjax_runtime.py"), *PROMPTS]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [json.loads(line)["model"] for line in finished.stdout.splitlines()] == expected
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert description["policy"] == {"name": "cheapest", "order": ["small", "medium", "big"], "at_least": at_least}
    assert (description["models"], description["outputs"]) == (["big", "medium", "small"], ["model", "scores"])


def test_costs_choose_among_all_models(tmp_path: Path) -> None:
    cost = {"big": 3.0, "medium": 2.0, "small": 0.5}
    router = tiny_router(tmp_path, policy=CostAware(cost, cost_weight=0.2))
    best = np.argmax(router.scores(PROMPTS) - 0.2 * np.asarray(list(cost.values())), axis=1)
    assert router.route(PROMPTS) == [router.models[column] for column in best]
    assert router.route([]) == []
    save_router(router, tmp_path / "router")
    assert load_router(tmp_path / "router").policy == router.policy
    for needs_pair in (lambda: router.win_prob(PROMPTS), lambda: router.with_threshold(0.5), lambda: router.strong):
        with pytest.raises(InputError, match="policy cost_aware has no pair of models: give both strong and weak"):
            needs_pair()
    pair = router.with_pair("big", "small")
    assert pair.policy == Threshold("big", "small")
    np.testing.assert_array_equal(pair.win_prob(PROMPTS), router.win_prob(PROMPTS, "big", "small"))


def test_a_threshold_routes_as_its_win_probabilities_say(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    with pytest.raises(InputError, match="no threshold yet: find one by calibrate"):
        router.route(PROMPTS)
    win_prob = router.win_prob(PROMPTS)
    threshold = float(np.median(win_prob))
    expected = ["big" if prob >= threshold else "small" for prob in win_prob]
    assert router.with_threshold(threshold).route(PROMPTS) == expected


def test_a_package_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(InputError, match=r"broken = cheap_broken:Policy .*: RuntimeError: no licence$") as caught:
        POLICIES["broken"]
    assert "\n" not in str(caught.value)
