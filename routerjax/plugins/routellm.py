"""A router of routerjax as one of RouteLLM's, in its ``Controller`` and all that is built on it.

    from routellm.controller import Controller
    from routerjax.plugins.routellm import register

    register()
    controller = Controller(
        routers=["routerjax"],
        strong_model="gpt-4o",
        weak_model="mistral/mistral-small-latest",
        config={"routerjax": {"checkpoint_path": "runs/mine_calibrated"}},
    )
    controller.route(prompt="Prove that pi is irrational.", router="routerjax", threshold=0.7)

RouteLLM makes OpenAI's client when it is imported: ``OPENAI_API_KEY`` must be set, to any text where nothing of OpenAI
is asked.
"""

from __future__ import annotations

import os

from routellm.routers.routers import (  # pyright: ignore[reportMissingImports]
    NAME_TO_CLS,
    ROUTER_CLS,
    Router,
    no_parallel,
)

from routerjax.errors import InputError
from routerjax.plugins.prompt_router import PromptRouter


@no_parallel  # JAX's threads do not outlive a fork
class RouterJAXRouter(Router):
    """Router with RouteLLM's interface.

    Args:
        checkpoint_path: router folder, run or bundle.
        strong_model, weak_model: pair of the router's models that is compared, which may have other names than those
            that RouteLLM calls; default the router's own.
        encoder: folder of the router's sentence encoder, if it is elsewhere now.
        threads: of onnxruntime, which computes bundles in ONNX.

    Raises:
        InputError: as :class:`routerjax.plugins.prompt_router.PromptRouter`.
    """

    def __init__(
        self,
        checkpoint_path: str | os.PathLike[str],
        strong_model: str | None = None,
        weak_model: str | None = None,
        encoder: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._router = PromptRouter(
            checkpoint_path, strong=strong_model, weak=weak_model, encoder=encoder, threads=threads
        )

    def calculate_strong_win_rate(self, prompt: str) -> float:
        """P(the strong model's answer is better than the weak one's): RouteLLM compares it with its threshold.

        Raises:
            InputError: a prompt that is no text.
        """
        return self._router.win_prob(prompt)


def register(name: str = "routerjax") -> None:
    """Make the router known to RouteLLM's ``Controller`` and command lines by a name.

    Raises:
        InputError: RouteLLM has another router of that name.
    """
    if ROUTER_CLS.get(name, RouterJAXRouter) is not RouterJAXRouter:
        raise InputError(f"RouteLLM has a router {name!r} of its own: choose another name")
    ROUTER_CLS[name] = RouterJAXRouter
    NAME_TO_CLS.setdefault(RouterJAXRouter, name)
