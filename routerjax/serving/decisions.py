"""Decisions: which model answers a conversation, by the router's policy or by a threshold that the client names."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from routerjax.errors import InputError, nearest
from routerjax.runtime import NoScoreError
from routerjax.serving.access_log import Record
from routerjax.serving.api_errors import SERVER, ApiError
from routerjax.serving.config import ROUTER_MODEL, ServeConfig, router_names
from routerjax.serving.metrics import Metrics
from routerjax.serving.micro_batches import MicroBatches, OverloadedError
from routerjax.serving.text_scoring import Choice, TextOutputs, TextScorer

logger = logging.getLogger(__name__)

NAMES = router_names(ROUTER_MODEL)


@dataclass(frozen=True)
class Decision:
    """Model that answers, and why.

    Attributes:
        choice: of the model.
        scores: of all models, in nats; None of a policy with a pair.
        seconds: from the request to the decision, waiting included.
    """

    choice: Choice
    scores: Mapping[str, float] | None
    seconds: float

    def described(self) -> dict[str, object]:
        """Return the decision as JSON holds it."""
        model, win_prob, threshold = self.choice
        of_pair = {"win_prob": win_prob, "threshold": "inf" if threshold == math.inf else threshold}
        return {"model": model, **(of_pair if self.scores is None else {"scores": self.scores})}

    def note_in(self, record: Record) -> None:
        """Note the decision in the record of its request."""
        record.chosen, record.win_prob, record.threshold = self.choice
        record.routing_seconds = self.seconds


class Decider:
    """Decides in micro-batches.

    Args:
        scorer: of the router, with a policy that can choose.
        config: names of the models that clients may ask for.
        metrics: where decisions and batches are counted.

    Attributes:
        scorer: as given.
        is_ready: True once every shape is compiled.

    Raises:
        InputError: the router has no threshold yet.
    """

    def __init__(self, scorer: TextScorer, config: ServeConfig, metrics: Metrics) -> None:
        scorer.policy.require_choice()
        self.scorer, self.is_ready = scorer, False
        self._config, self._metrics = config, metrics
        self._batches: MicroBatches[TextOutputs] = MicroBatches(scorer, scorer.largest_batch, metrics.observe_batch)

    async def warm_up(self) -> None:
        """Compile in the worker thread, one shape after the other, so that it can be cancelled."""
        shapes = self.scorer.warm_up()
        while await self._batches.in_thread(lambda: next(shapes, None)) is not None:
            pass
        self.is_ready = True

    def close(self) -> None:
        """End the worker thread."""
        self._batches.close()

    def threshold(self, name: str) -> float | None:
        """Threshold that the name of a model stands for: None for that of the policy.

        Args:
            name: ``router``, or ``router-`` and a number.

        Raises:
            ApiError: no such model.
        """
        match = NAMES.fullmatch(name)
        if match is None:
            is_near = name.startswith(f"{ROUTER_MODEL}-")
            raise self.unknown(name, "; a threshold is a number in [0, 1], or inf" if is_near else "")
        if match[1] is None:
            return None
        threshold = float(match[1])
        if threshold > 1 and threshold != math.inf:
            raise self.unknown(name, "; a threshold is a number in [0, 1], or inf")
        if self.scorer.pair is None:
            raise self.unknown(name, "; this router's policy has no pair of models, and no threshold")
        return threshold

    def unknown(self, name: str, why: str = "") -> ApiError:
        """Error for the name of a model that there is not."""
        known = [ROUTER_MODEL, *self._config.models]
        message = f"the model {name[:100]!r} does not exist{why or nearest(name[:100], known)}"
        return ApiError(404, message, code="model_not_found", param="model")

    async def __call__(self, texts: Sequence[str], threshold: float | None = None) -> list[Decision]:
        """Decide for each text.

        Args:
            texts: as they are scored.
            threshold: in the place of the policy's.

        Raises:
            ApiError: the server is starting or overloaded, a text cannot be read, or the router answers no probability.
        """
        if not self.is_ready:
            message = "the server is starting: its router is not ready yet"
            raise ApiError(503, message, SERVER, code="starting", retry_after=5)
        try:
            async with asyncio.timeout(self._config.seconds.decision):
                computed, seconds = await self._batches(texts)
        except (OverloadedError, TimeoutError):
            raise ApiError(503, "the server is overloaded", SERVER, code="overloaded", retry_after=1) from None
        except InputError as error:
            raise ApiError(400, f"the prompt cannot be routed: {_without_text(error)}", code="unroutable") from None
        except NoScoreError as error:
            logger.error("%s", error)
            raise ApiError(500, "the router has no score of this prompt", SERVER, code="routing_failed") from None
        except Exception as error:
            logger.warning("the router failed on a prompt: %s", type(error).__name__)
            raise ApiError(503, "the router failed on this prompt", SERVER, code="routing_failed") from None
        policy = self.scorer.at(threshold)
        decisions = [Decision(self.scorer.choose(outputs, policy), outputs.scores, seconds) for outputs in computed]
        for model, win_prob, _ in (decision.choice for decision in decisions):
            self._metrics.routing.observe(seconds)
            self._metrics.decisions.labels(model, "policy" if threshold is None else "threshold").inc()
            if win_prob is not None:
                self._metrics.observe_win_prob(win_prob)
        return decisions


def _without_text(error: InputError) -> str:
    """Reason of an error without the row and the prompt that it names."""
    reason = getattr(error, "reason", str(error))
    return " ".join(str(reason).lstrip(": ").split())[:300]
