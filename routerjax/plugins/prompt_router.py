"""A router that is asked about one prompt at a time, from any thread or event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from typing import Unpack, cast

from routerjax.errors import InputError
from routerjax.prompts import valid_text
from routerjax.runtime import NoScoreError
from routerjax.serving.text_scoring import Choice, ScorerOptions, TextOutputs, open_scorer


class PromptRouter:
    """Router that computes in one thread of its own, and is loaded once it is made.

    The first text of each of several lengths is compiled for, which takes seconds; a bundle in ONNX compiles nothing.

    Args:
        path: of a router folder, of a run, or of an exported bundle.
        options: see :class:`routerjax.serving.text_scoring.ScorerOptions`.

    Attributes:
        choices: models among which the router chooses.

    Raises:
        InputError: as :func:`routerjax.serving.text_scoring.open_scorer`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[ScorerOptions]) -> None:
        self._scorer = open_scorer(path, **options)
        self.choices = self._scorer.choices
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="routerjax")
        try:
            self._thread.submit(self._outputs, "warm").result()
        except BaseException:
            self._thread.shutdown()
            raise

    def require_policy(self) -> None:
        """Refuse a router that has no threshold yet.

        Raises:
            InputError: says how one is found.
        """
        self._scorer.policy.require_choice()

    def win_prob(self, prompt: str) -> float:
        """P(the strong model's answer is better than the weak one's), in [0, 1].

        Raises:
            InputError: a prompt that is no text, or a policy without a pair of models.
        """
        self._scorer.at(0.0)  # refuses a policy without a pair
        return cast(float, self._thread.submit(self._outputs, _text(prompt)).result().win_prob)

    def choose(self, prompt: str, threshold: float | None = None) -> Choice:
        """Choose the model that answers a prompt.

        Args:
            prompt: a text.
            threshold: in the place of the policy's.

        Raises:
            InputError: as :meth:`win_prob`; a threshold out of range, or none at all.
        """
        policy = self._scorer.at(threshold)
        outputs = self._thread.submit(self._outputs, _text(prompt)).result()
        return self._scorer.choose(outputs, policy)

    async def achoose(self, prompt: str, threshold: float | None = None) -> Choice:
        """Do what :meth:`choose` does, beside an event loop."""
        policy = self._scorer.at(threshold)
        outputs = await asyncio.wrap_future(self._thread.submit(self._outputs, _text(prompt)))
        return self._scorer.choose(outputs, policy)

    def _outputs(self, text: str) -> TextOutputs:
        try:
            return self._scorer([text])[0]
        except NoScoreError as error:
            raise InputError(str(error)) from error


def _text(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__}")
    return valid_text(prompt)
