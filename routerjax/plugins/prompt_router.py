"""A router that is asked about one prompt at a time, from any thread or event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from routerjax import policies, runtime
from routerjax.errors import InputError
from routerjax.policies import Policy, Threshold
from routerjax.prompts import valid_text
from routerjax.router import load_router, router_folder


class Choice(NamedTuple):
    """Model that answers a prompt, and why.

    Attributes:
        model: of the router.
        win_prob: P(the strong model's answer is better), in [0, 1]; None of a policy without a pair.
        threshold: that it was compared with; None of a policy without a pair.
    """

    model: str
    win_prob: float | None
    threshold: float | None


class PromptRouter:
    """Router that computes in one thread of its own, and is loaded once it is made.

    The first text of each of several lengths is compiled for, which takes seconds; a bundle in ONNX compiles nothing.

    Args:
        path: of a router folder, of a run, or of an exported bundle.
        threshold: in the place of the stored one, in [0, 1] or inf.
        strong, weak: other models of the router's than its own pair; a bundle has one.
        encoder: folder of the router's sentence encoder, if it is elsewhere now; a bundle holds its own.

    Attributes:
        choices: models among which the router chooses.

    Raises:
        InputError: no router there, an unknown model, or a router that reads no text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threshold: float | None = None,
        strong: str | None = None,
        weak: str | None = None,
        encoder: str | None = None,
    ) -> None:
        if (Path(path) / runtime.DESCRIPTION).is_file():
            if (strong, weak, encoder) != (None, None, None):
                raise InputError(f"{path} is a bundle, of one pair and with its encoder: export another one")
            self._open_bundle(path)
        else:
            self._open_folder(path, strong, weak, encoder)
        self._policy = self._policy if threshold is None else self._policy_at(threshold)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="routerjax")
        try:
            self.choose("warm", threshold=0.5 if isinstance(self._policy, Threshold) else None)
        except runtime.BundleError as error:
            raise InputError(f"{path}: {error}") from error

    def _open_folder(
        self, path: str | os.PathLike[str], strong: str | None, weak: str | None, encoder: str | None
    ) -> None:
        router = load_router(router_folder(path), encoder=encoder).with_pair(strong, weak)
        router.featurizer.require_text()
        self._policy, self.choices = router.policy, _choices(router.policy, router.models)
        self._win_prob: Callable[[str], float] = lambda text: float(router.win_prob([text])[0])
        self._route: Callable[[str], str] = lambda text: router.route([text])[0]

    def _open_bundle(self, path: str | os.PathLike[str]) -> None:
        try:
            bundle = runtime.load(path)
        except runtime.BundleError as error:
            raise InputError(str(error)) from error
        self._policy = policies.read_policy(bundle.description["policy"])
        self.choices = _choices(self._policy, tuple(bundle.description["models"]))
        self._win_prob, self._route = bundle.win_prob, bundle.route

    def require_policy(self) -> None:
        """Refuse a router that has no threshold yet.

        Raises:
            InputError: says how one is found.
        """
        if not self._policy.chooses:
            raise InputError(
                "this router has no threshold: store one by calibrate --strong-share P --output DIR, or give one"
            )

    def win_prob(self, prompt: str) -> float:
        """P(the strong model's answer is better than the weak one's), in [0, 1].

        Raises:
            InputError: a prompt that is no text, or a policy without a pair of models.
        """
        self._pair()
        return self._thread.submit(self._win_prob, _text(prompt)).result()

    def choose(self, prompt: str, threshold: float | None = None) -> Choice:
        """Choose the model that answers a prompt.

        Args:
            prompt: a text.
            threshold: in the place of the policy's.

        Raises:
            InputError: as :meth:`win_prob`; a threshold out of range, or none at all.
        """
        return self._thread.submit(self._choose, _text(prompt), self._policy_at(threshold)).result()

    async def achoose(self, prompt: str, threshold: float | None = None) -> Choice:
        """Do what :meth:`choose` does, beside an event loop."""
        submitted = self._thread.submit(self._choose, _text(prompt), self._policy_at(threshold))
        return await asyncio.wrap_future(submitted)

    def _choose(self, text: str, policy: Policy) -> Choice:
        if not isinstance(policy, Threshold) or policy.threshold is None:
            return Choice(self._route(text), None, None)
        win_prob, threshold = self._win_prob(text), float(policy.threshold)
        is_strong = policies.route(np.asarray([win_prob], np.float32), threshold)[0]
        return Choice(policy.strong if is_strong else policy.weak, win_prob, threshold)

    def _policy_at(self, threshold: float | None) -> Policy:
        if threshold is None:
            self.require_policy()
            return self._policy
        return dataclasses.replace(self._pair(), threshold=threshold)

    def _pair(self) -> Threshold:
        if not isinstance(self._policy, Threshold):
            raise InputError(f"the router's policy {self._policy.name} has no pair of models, and so no threshold")
        return self._policy


def _choices(policy: Policy, models: tuple[str, ...]) -> tuple[str, ...]:
    return (policy.strong, policy.weak) if isinstance(policy, Threshold) else models


def _text(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}")
    return valid_text(prompt)
