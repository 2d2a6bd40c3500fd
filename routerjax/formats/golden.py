"""The prompts that an export is compared with its router on, and the precision that both sides compute in."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.data import simulate_arena
from routerjax.errors import InputError, VerificationError
from routerjax.features import Embeddings, TokenFeaturizer
from routerjax.models import describe_encoder
from routerjax.policies import Policy, WinProb
from routerjax.router import Router
from routerjax.typing import Array

logger = logging.getLogger(__name__)

NUM_GOLDEN = 48
NUM_COMPARED = 8
"""Prompts whose scores are compared by a format that is read again: the last ones."""
SCORE_TOLERANCE, ROUNDED_TOLERANCE = 1e-5, 5e-2
"""Largest difference of scores that is accepted in float32, and of a router that is stored and computes in bfloat16:
times the largest score where that is above 1."""


def artefact_precision() -> AbstractContextManager[object]:
    """Compute matrix products in full float32 within the context: exported functions, and the scores they must give.

    Accelerators multiply in lower precision (TF32, bfloat16) unless told otherwise, which would differ from the same
    product elsewhere by more than the tolerances.
    """
    return jax.default_matmul_precision("highest")


LONGEST_GOLDEN = 4096
"""Tokens of the longest prompt that an export is compared on: what attends to more of them takes minutes."""


def golden_prompts(max_length: int = 512) -> tuple[str, ...]:
    """Prompts of the simulated arena, and one of more tokens than ``max_length``, where that is at most 4,096."""
    prompts = simulate_arena(num_prompts=NUM_GOLDEN, num_test_prompts=1, seed=0).preferences.unique_prompts
    longest = " ".join(prompts)
    # A word is a token or more.
    times = 1 + (max_length // len(longest.split()) if max_length <= LONGEST_GOLDEN else 0)
    return (*prompts, " ".join([longest] * times))


def golden_scores(router: Router, query: Sequence[str] | Embeddings) -> dict[str, np.ndarray]:
    """Compute ``scores``, and ``win_prob`` where the policy has a pair, of :meth:`Router.output_fn` by the router."""
    win_prob = {"win_prob": router.win_prob(query)} if router.has_pair else {}
    return {**win_prob, "scores": router.scores(query)}


def golden_models(router: Router, query: Sequence[str] | Embeddings, tolerance: float) -> np.ndarray:
    """Compute ``model`` of :meth:`Router.output_fn` by the router.

    It is -1 where a difference that is within the tolerance, of a score or a win probability, would change it.
    """
    choose = functools.partial(router.choose, policy=_Settled(router.policy, tolerance))
    return router.map_scores(jax.jit(choose), query).astype(np.int32)


def compare_scores(router: Router, written: Router, prompts: Sequence[str], *, is_reversed: bool = False) -> float:
    """Compare tokens, scores, and where there is a pair, the probabilities of its outcomes.

    Args:
        router: that was exported.
        written: what was read again.
        prompts: the last of them are scored, so that one that is cut is among them.
        is_reversed: the scores of what was written are in the opposite order.

    Returns:
        The largest difference.

    Raises:
        VerificationError: tokens differ, or a score by more than the rounding of the type that it is computed in.
    """
    ours, theirs = (cast(TokenFeaturizer, each.featurizer) for each in (router, written))
    if ours.tokenizer.token_ids(prompts) != theirs.tokenizer.token_ids(prompts):
        raise VerificationError("its tokens are others")
    scored = prompts[-NUM_COMPARED:]
    scores = router.scores(scored)
    expected, actual = scores[:, ::-1] if is_reversed else scores, written.scores(scored)
    if router.has_pair:
        expected = np.concatenate([expected, router.outcome_prob(scored)], axis=1)
        actual = np.concatenate([actual, written.outcome_prob(scored)], axis=1)
    difference = float(np.abs(actual - expected).max())
    is_rounded = describe_encoder(ours.encoder)["dtype"] != "float32"
    tolerance = ROUNDED_TOLERANCE if is_rounded else SCORE_TOLERANCE
    if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):
        raise VerificationError(f"scores differ by {difference:.1e}")
    return difference


@dataclass(frozen=True)
class _Settled(Policy):
    """Choice of another policy where differences within a tolerance cannot change it; -1 elsewhere."""

    name = "settled"

    policy: Policy
    tolerance: float

    def require_models(self, models: tuple[str, ...]) -> None:
        self.policy.require_models(models)

    def choose(self, models: tuple[str, ...], scores: Array, win_prob: WinProb) -> Array:
        chosen = self.policy.choose(models, scores, win_prob)
        is_settled = jnp.ones(len(scores), bool)
        if scores.shape[1] == len(models):  # not so where the scores are those of a pair's outcomes
            step = 2 * self.tolerance * jnp.maximum(1.0, jnp.abs(scores).max(axis=1, keepdims=True))
            lower = scores - step * jax.nn.one_hot(chosen, len(models))
            is_settled = chosen == self.policy.choose(models, lower, win_prob)
        for moved in (-2 * self.tolerance, 2 * self.tolerance):
            win_prob_moved = functools.partial(_moved, win_prob, moved)
            is_settled &= chosen == self.policy.choose(models, scores, win_prob_moved)
        return jnp.where(is_settled, chosen, -1)


def _moved(win_prob: WinProb, by: float, strong: str, weak: str) -> Array:
    return win_prob(strong, weak) + by


def golden_query(router: Router, prompts: Sequence[str] | None = None) -> list[str] | Embeddings:
    """Return golden prompts, or random embeddings of length 1 for a router whose text is read elsewhere.

    Raises:
        InputError: prompts are given for a router that takes embeddings.
    """
    reading = router.featurizer.text_function()
    if reading is not None:
        if prompts is None and reading.tokenizer.max_length > LONGEST_GOLDEN:
            logger.info("no prompt of the comparison is cut: the router reads %d tokens", reading.tokenizer.max_length)
        return list(golden_prompts(reading.tokenizer.max_length) if prompts is None else prompts)
    if prompts is not None:
        raise InputError("golden prompts were given, but this router is exported for embeddings, not text")
    embedding = np.random.default_rng(0).standard_normal((NUM_GOLDEN, router.featurizer.width)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return Embeddings(embedding, router.featurizer.fingerprint)
