"""RouteLLM's own classes ask a router of routerjax."""

from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, load_router
from routerjax.router import save_router
from tests.routers import tiny_router

# Other packages warn of each other.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

PROMPTS = ("what is the capital of this country?", "prove that there are infinitely many primes", "write a poem", "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", "of nobody")
    save_router(tiny_router(tmp_path), tmp_path / "router")
    return tmp_path / "router"


def test_the_controller_routes_by_the_router(folder: Path) -> None:
    import pandas as pd
    from routellm.controller import Controller
    from routellm.routers.routers import Router

    from routerjax.plugins.routellm import register

    register()
    register()
    config = {"routerjax": {"checkpoint_path": str(folder)}}
    controller = Controller(["routerjax"], strong_model="gpt", weak_model="mistral", config=config)
    plugged = controller.routers["routerjax"]
    assert isinstance(plugged, Router)
    assert str(plugged) == "routerjax"
    router = load_router(folder)
    win_prob = router.win_prob(PROMPTS)
    computed = controller.batch_calculate_win_rate(pd.Series(PROMPTS), "routerjax")
    np.testing.assert_allclose(computed, win_prob, rtol=0, atol=1e-6)
    names = {"big": "gpt", "small": "mistral"}
    for threshold in (0.0, *map(float, win_prob), 1.0):
        expected = [names[model] for model in router.with_threshold(threshold).route(PROMPTS)]
        assert [controller.route(prompt, "routerjax", threshold) for prompt in PROMPTS] == expected


def test_the_controller_calls_the_model_that_is_chosen(folder: Path) -> None:
    from routellm.controller import Controller

    from routerjax.plugins.routellm import register

    register("mine")
    config = {"mine": {"checkpoint_path": str(folder), "strong_model": "medium", "weak_model": "small"}}
    controller = Controller(["mine"], strong_model="openai/large", weak_model="openai/little", config=config)
    win_prob = float(load_router(folder).win_prob(PROMPTS[:1], "medium", "small")[0])
    messages = [{"role": "user", "content": PROMPTS[0]}]
    for threshold, model in ((win_prob - 0.01, "large"), (win_prob + 0.01, "little")):
        answer = controller.chat.completions.create(
            model=f"router-mine-{threshold}", messages=messages, mock_response="an answer"
        )
        assert (answer.model, answer.choices[0].message.content) == (model, "an answer")
    assert dict(controller.model_counts["mine"]) == {"openai/large": 1, "openai/little": 1}


def test_routers_of_routellm_keep_their_names(folder: Path) -> None:
    from routerjax.plugins.routellm import register

    with pytest.raises(InputError, match="RouteLLM has a router 'mf' of its own: choose another name"):
        register("mf")
