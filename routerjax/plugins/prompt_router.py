"""A router that is asked about one prompt at a time, from any thread."""

from __future__ import annotations

import os
import threading

import numpy as np

from routerjax import policies
from routerjax.errors import InputError
from routerjax.prompts import valid_text
from routerjax.router import load_router, router_folder


class PromptRouter:
    """Router of a folder, which is loaded, compiled and ready once it is made.

    Args:
        path: of a router folder, or of a run.
        strong, weak: other models of the router's than its own pair.
        encoder: folder of the router's sentence encoder, if it is elsewhere now.

    Attributes:
        models: names of the router's models.

    Raises:
        InputError: no router there, an unknown model, or a router that reads no text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        strong: str | None = None,
        weak: str | None = None,
        encoder: str | None = None,
    ) -> None:
        router = load_router(router_folder(path), encoder=encoder).with_pair(strong, weak)
        router.featurizer.require_text()
        self.models = router.models
        self._router, self._lock = router, threading.Lock()
        if router.has_pair:
            self.win_prob("warm")
        else:
            self.model("warm")

    def require_policy(self) -> None:
        """Refuse a router that has no threshold yet.

        Raises:
            InputError: says how one is found.
        """
        if not self._router.policy.chooses:
            raise InputError(
                "this router has no threshold: store one by calibrate --strong-share P --output DIR, or give one"
            )

    def win_prob(self, prompt: str) -> float:
        """P(the strong model's answer is better than the weak one's), in [0, 1].

        Raises:
            InputError: a prompt that is no text, or a policy without a pair of models.
        """
        with self._lock:
            return float(self._router.win_prob([_text(prompt)])[0])

    def model(self, prompt: str, threshold: float | None = None) -> str:
        """Name of the model that answers a prompt.

        Args:
            prompt: a text.
            threshold: in the place of the policy's.

        Raises:
            InputError: as :meth:`win_prob`; a threshold out of range, or none at all.
        """
        if threshold is None:
            with self._lock:
                return self._router.route([_text(prompt)])[0]
        is_strong = policies.route(np.asarray([self.win_prob(prompt)], np.float32), threshold)[0]
        return self._router.strong if is_strong else self._router.weak


def _text(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}")
    return valid_text(prompt)
