"""The router that plug-ins ask about one prompt at a time decides as the router of its folder does."""

import asyncio
import concurrent.futures
import dataclasses
from pathlib import Path

import pytest

from routerjax import InputError, formats, load_router
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
    assert plugged.choices == ("big", "small")
    win_prob = router.win_prob(PROMPTS).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(plugged.win_prob, PROMPTS * 4)) == pytest.approx(win_prob * 4, abs=1e-6)
        choices = list(pool.map(plugged.choose, PROMPTS * 4))
    assert [choice.model for choice in choices] == router.route(PROMPTS) * 4
    assert choices[0].win_prob == pytest.approx(win_prob[0], abs=1e-6)
    assert choices[0].threshold == router.threshold
    for threshold in (0.0, win_prob[0], 0.5, 1.0, float("inf")):
        (model,) = router.with_threshold(threshold).route(PROMPTS[:1])
        assert asyncio.run(plugged.achoose(PROMPTS[0], threshold)).model == model


def test_another_pair_and_a_policy_without_one(folder: Path, tmp_path: Path) -> None:
    router = load_router(folder / "router")
    pair = PromptRouter(folder / "router", strong="medium", weak="small")
    assert pair.win_prob(PROMPTS[0]) == pytest.approx(float(router.win_prob(PROMPTS[:1], "medium", "small")[0]))
    with pytest.raises(InputError, match=r"this router has no threshold yet: .*--strong-share"):
        pair.require_policy()
    assert PromptRouter(folder / "router", threshold=0.0).choose(PROMPTS[0]).model == "big"
    costs = CostAware(cost=dict.fromkeys(NAMES, 1.0), cost_weight=0.0)
    save_router(dataclasses.replace(router, policy=costs), tmp_path / "router")
    by_cost = PromptRouter(tmp_path / "router")
    by_cost.require_policy()
    assert by_cost.choices == NAMES
    assert [by_cost.choose(prompt).model for prompt in PROMPTS] == load_router(tmp_path / "router").route(PROMPTS)
    assert by_cost.choose(PROMPTS[0])[1:] == (None, None)
    with pytest.raises(InputError, match="cost_aware has no pair"):
        by_cost.choose(PROMPTS[0], threshold=0.5)


def test_a_bundle_decides_as_its_router(folder: Path, tmp_path: Path) -> None:
    router = load_router(folder / "router")
    formats.export(router, tmp_path / "bundle", "stablehlo")
    plugged = PromptRouter(tmp_path / "bundle")
    plugged.require_policy()
    assert plugged.choices == ("big", "small")
    assert [plugged.win_prob(prompt) for prompt in PROMPTS] == pytest.approx(
        router.win_prob(PROMPTS).tolist(), abs=1e-5
    )
    assert [plugged.choose(prompt).model for prompt in PROMPTS] == router.route(PROMPTS)
    assert plugged.choose(PROMPTS[0], threshold=1.0).model == "small"
    with pytest.raises(InputError, match="is a bundle, of one pair and with its encoder"):
        PromptRouter(tmp_path / "bundle", weak="medium")
    (tmp_path / "bundle" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"tokenizer.json is damaged"):
        PromptRouter(tmp_path / "bundle")


@pytest.mark.parametrize("prompt", [None, 3, ["text"], [{"type": "text", "text": "hello"}]])
def test_what_is_no_text_is_refused(folder: Path, prompt: object) -> None:
    with pytest.raises(InputError, match="a prompt must be text, got"):
        PromptRouter(folder / "router").win_prob(prompt)
