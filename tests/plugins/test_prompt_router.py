"""The router that plug-ins ask about one prompt at a time decides as the router of its folder does."""

import concurrent.futures
import dataclasses
from pathlib import Path

import pytest

from routerjax import InputError, load_router
from routerjax.plugins.prompt_router import PromptRouter
from routerjax.policies import CostAware
from routerjax.router import save_router
from tests.routers import NAMES, tiny_router

PROMPTS = ("what is the capital of this country?", "prove that there are infinitely many primes", "", "  ", "ünïcode ✓")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("routers")
    save_router(tiny_router(path, threshold=0.5), path / "router")
    return path


def test_decisions_are_those_of_the_folder_from_many_threads(folder: Path) -> None:
    router, plugged = load_router(folder / "router"), PromptRouter(folder / "router")
    assert plugged.models == NAMES
    win_prob = router.win_prob(PROMPTS).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(plugged.win_prob, PROMPTS * 4)) == pytest.approx(win_prob * 4, abs=1e-6)
        assert list(pool.map(plugged.model, PROMPTS * 4)) == router.route(PROMPTS) * 4
    for threshold in (0.0, win_prob[0], 0.5, 1.0, float("inf")):
        expected = router.with_threshold(threshold).route(PROMPTS[:1])
        assert [plugged.model(PROMPTS[0], threshold)] == expected


def test_another_pair_and_a_policy_without_one(folder: Path, tmp_path: Path) -> None:
    router = load_router(folder / "router")
    pair = PromptRouter(folder / "router", strong="medium", weak="small")
    assert pair.win_prob(PROMPTS[0]) == pytest.approx(float(router.win_prob(PROMPTS[:1], "medium", "small")[0]))
    with pytest.raises(InputError, match=r"this router has no threshold: .* --strong-share"):
        pair.require_policy()
    costs = CostAware(cost=dict.fromkeys(NAMES, 1.0), cost_weight=0.0)
    save_router(dataclasses.replace(router, policy=costs), tmp_path / "router")
    by_cost = PromptRouter(tmp_path / "router")
    by_cost.require_policy()
    assert [by_cost.model(prompt) for prompt in PROMPTS] == load_router(tmp_path / "router").route(PROMPTS)
    with pytest.raises(InputError, match="cost_aware has no pair"):
        by_cost.model(PROMPTS[0], threshold=0.5)


@pytest.mark.parametrize("prompt", [None, 3, ["text"], [{"type": "text", "text": "hello"}]])
def test_what_is_no_text_is_refused(folder: Path, prompt: object) -> None:
    with pytest.raises(InputError, match="a prompt must be text, got"):
        PromptRouter(folder / "router").win_prob(prompt)
