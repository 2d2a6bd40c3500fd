"""Win probabilities of the controls: what a router must beat, and what it cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Key, UInt32

from routerjax.data import Benchmark
from routerjax.prompts import prompt_ids

CONTROLS = ("random", "constant", "oracle")
# The part of the oracle's win probability that is the rank of the gain.
RANK_WEIGHT = 1e-6


def control_win_probs(
    benchmark: Benchmark, *, strong: str, weak: str, seed: int = 0
) -> dict[str, Float64[np.ndarray, "prompts"]]:
    """Win probabilities of the controls that need no training: ``random``, ``constant`` and ``oracle``.

    Args:
        benchmark: prompts and qualities.
        strong: the expensive model.
        weak: the cheap one.
        seed: of the random router, 0 to 2**32 - 1.

    Returns:
        By control, win probabilities in the order of the benchmark's prompts.
    """
    return {
        "random": random_win_prob(benchmark.prompts, seed=seed),
        "constant": np.full(len(benchmark), 0.5),
        "oracle": oracle_win_prob(benchmark.quality[strong], benchmark.quality[weak]),
    }


def random_win_prob(prompts: tuple[str, ...], *, seed: int) -> Float64[np.ndarray, "prompts"]:
    """Draw win probabilities uniformly from (0, 1), a pure function of seed and prompt."""
    return np.asarray(_random_win_prob(jax.random.key(seed), jnp.asarray(prompt_ids(prompts))), np.float64)


def is_chance(quality: Float64[np.ndarray, "*shape"]) -> bool:
    """Return True if qualities are chances of a good answer (all in [0, 1]), False if they are grades."""
    return bool(quality.min() >= 0 and quality.max() <= 1)


@jax.jit
def _random_win_prob(key: Key[Array, ""], prompt_id: UInt32[Array, "prompts 2"]) -> Float[Array, "prompts"]:
    def draw(words: UInt32[Array, "2"]) -> Float[Array, ""]:
        # The difference of two standard Gumbel variables is standard logistic, so its sigmoid is uniform.
        strong, weak = jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1]), (2,))
        return jax.nn.sigmoid(strong - weak)

    return jax.vmap(draw)(prompt_id)


def oracle_win_prob(
    quality_strong: Float64[np.ndarray, "prompts"], quality_weak: Float64[np.ndarray, "prompts"]
) -> Float64[np.ndarray, "prompts"]:
    """Rank the prompts by ``gain = quality_strong - quality_weak``, on any scale: no router's mean quality is higher.

    ``(1 - 1e-6) * p + 1e-6 * rank``, where p is ``(1 + gain) / 2`` of qualities that are chances and ``sigmoid(gain)``
    of grades, and rank, in (0, 1), is the place of the gain among all different ones. p alone would not tell gains
    apart that are so large, or so close, that they round to one number. Equal gains get equal win probabilities.

    Example:
        >>> win_prob = oracle_win_prob(np.array([99.0, 97.0, 3.0]), np.array([1.0, 2.0, 4.0]))
        >>> bool(win_prob[0] > win_prob[1] > win_prob[2])
        True
    """
    gain = quality_strong - quality_weak
    gains, place = np.unique(gain, return_inverse=True)
    is_linear = is_chance(np.stack([quality_strong, quality_weak]))
    win_prob = (1 + gain) / 2 if is_linear else np.exp(-np.logaddexp(0, -gain))
    return (1 - RANK_WEIGHT) * win_prob + RANK_WEIGHT * (place + 0.5) / len(gains)
