"""A simulated arena: text prompts, and models whose chances on each prompt are KNOWN.

What a learner sees are sampled battles; what it is measured against is the truth. This is how the demo can say how
close a learned router comes to the best possible one.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from routerjax.data.benchmarks import Benchmark
from routerjax.data.preferences import Preferences
from routerjax.data.prompt_templates import LEVELS, SLOTS, TEMPLATES
from routerjax.errors import InputError

STRONG, WEAK = "sim-large", "sim-small"

# Ability of each model in each domain, in the order of TEMPLATES; the small model holds its own in small talk and
# translation, the coder is a specialist.
ABILITIES: Mapping[str, tuple[float, ...]] = {
    "sim-chat": (1.1, 0.7, 0.5, 0.9, -0.6, -0.8, 0.0),
    "sim-coder": (-0.3, 0.0, 0.1, -0.2, 0.7, 1.2, -0.2),
    "sim-large": (0.8, 0.9, 1.0, 1.0, 1.1, 1.0, 1.1),
    "sim-medium": (0.7, 0.7, 0.6, 0.7, 0.4, 0.4, 0.5),
    "sim-small": (1.0, 0.8, 0.3, 0.5, -0.4, -0.3, -0.1),
    "sim-tiny": (0.2, -0.4, -0.6, -0.5, -1.1, -1.2, -0.9),
}
# How much of the difference in ability shows at each level: an easy prompt is answered well by all.
DISCRIMINATION: Mapping[str, float] = {"easy": 0.2, "medium": 1.0, "hard": 2.2}
# What the text does not tell: each prompt's discrimination is multiplied by exp(normal of this standard deviation).
HIDDEN_SPREAD = 0.3
# Davidson's tie parameter: between equals, P(tie) = TIE / (TIE + 2) = 1/3.
TIE = 1.0


# So many known prompts in a row mean that hardly any are left to draw.
MOST_REPEATED = 1000


@dataclass(frozen=True, eq=False)
class SimulatedArena:
    """Battles to learn from, and other prompts to measure on.

    Attributes:
        preferences: sampled battles.
        benchmark: other prompts; the quality of the strong model is its true chance of being preferred to the weak one
            (a tie counting half), and the weak model's quality is the rest.
    """

    preferences: Preferences
    benchmark: Benchmark

    @property
    def win_prob(self) -> Float64[np.ndarray, "prompts"]:
        """The true P(strong is preferred to weak) on each prompt of the benchmark: what an ideal router would say."""
        return self.benchmark.quality[STRONG]


def simulate_arena(
    *, num_prompts: int = 4000, num_test_prompts: int = 1000, battles_per_prompt: int = 4, seed: int = 0
) -> SimulatedArena:
    """Simulate an arena.

    Model m scores ``s_m(q) = discrimination(q) * ability_m(domain(q))`` on a prompt. A battle of a and b ends as
    Davidson's model says: ``P(a) : P(tie) : P(b) = exp(s_a) : TIE * exp((s_a + s_b) / 2) : exp(s_b)``.

    Args:
        num_prompts: different prompts with battles.
        num_test_prompts: other prompts, for the benchmark.
        battles_per_prompt: between pairs drawn at random.
        seed: of everything.

    Raises:
        InputError: a number is not positive, or the templates do not hold that many prompts.

    Reference:
        Davidson, "On extending the Bradley-Terry model to accommodate ties", JASA 1970.
    """
    for name, value in (
        ("num_prompts", num_prompts),
        ("num_test_prompts", num_test_prompts),
        ("battles_per_prompt", battles_per_prompt),
    ):
        if value <= 0:
            raise InputError(f"{name} must be positive, got {value}")
    rng = np.random.default_rng(seed)
    prompts, domains, levels = _draw_prompts(rng, num_prompts + num_test_prompts)
    models = tuple(ABILITIES)
    ability = np.asarray([ABILITIES[model] for model in models])  # [models, domains]
    names = list(TEMPLATES)
    hidden = np.exp(HIDDEN_SPREAD * rng.standard_normal(len(prompts)))
    discrimination = np.asarray([DISCRIMINATION[level] for level in levels]) * hidden
    scores = discrimination[:, None] * ability[:, [names.index(domain) for domain in domains]].T  # [prompts, models]

    prompt_index = np.repeat(np.arange(num_prompts), battles_per_prompt)
    model_a = rng.integers(len(models), size=len(prompt_index))
    model_b = (model_a + rng.integers(1, len(models), size=len(prompt_index))) % len(models)
    chances = outcome_probabilities(scores[prompt_index, model_a] - scores[prompt_index, model_b])
    drawn = (rng.random(len(prompt_index))[:, None] > np.cumsum(chances, axis=1)[:, :2]).sum(axis=1)
    preferences = Preferences(
        unique_prompts=tuple(prompts[:num_prompts]),
        prompt_index=prompt_index.astype(np.int32),
        model_a=model_a.astype(np.int32),
        model_b=model_b.astype(np.int32),
        outcome=np.eye(3, dtype=np.float32)[drawn],
        weight=np.ones(len(prompt_index), np.float32),
        models=models,
    )
    test = slice(num_prompts, None)
    chances = outcome_probabilities(scores[test, models.index(STRONG)] - scores[test, models.index(WEAK)])
    win_prob = chances[:, 0] + chances[:, 1] / 2
    benchmark = Benchmark(
        name="simulated_arena",
        prompts=tuple(prompts[test]),
        quality={STRONG: win_prob, WEAK: 1 - win_prob},
        strong=STRONG,
        weak=WEAK,
        domain=tuple(domains[test]),
    )
    return SimulatedArena(preferences, benchmark)


def outcome_probabilities(margin: Float64[np.ndarray, "battles"]) -> Float64[np.ndarray, "battles 3"]:
    """P(a wins), P(tie), P(b wins) under Davidson's model; a positive margin favours model_a.

    Example:
        >>> outcome_probabilities(np.array([0.0])).round(4).tolist()
        [[0.3333, 0.3333, 0.3333]]
    """
    odds = np.stack([np.exp(margin / 2), np.full_like(margin, TIE), np.exp(-margin / 2)], axis=1)
    return odds / odds.sum(axis=1, keepdims=True)


def _draw_prompts(rng: np.random.Generator, count: int) -> tuple[list[str], list[str], list[str]]:
    """``count`` different prompts with domain and level; every domain and level is equally frequent."""
    drawn: dict[str, tuple[str, str]] = {}
    kinds = [(domain, level) for domain in TEMPLATES for level in LEVELS]
    repeated = 0
    while len(drawn) < count:
        domain, level = kinds[rng.integers(len(kinds))]
        templates = TEMPLATES[domain][level]
        prompt = _fill(templates[rng.integers(len(templates))], rng)
        repeated = repeated + 1 if prompt in drawn else 0
        if repeated == MOST_REPEATED:
            raise InputError(f"the templates do not hold {count} different prompts; ask for fewer")
        drawn.setdefault(prompt, (domain, level))
    domains, levels = zip(*drawn.values(), strict=True)
    return list(drawn), list(domains), list(levels)


def _fill(template: str, rng: np.random.Generator) -> str:
    slots = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    choices = {slot: SLOTS[slot][rng.integers(len(SLOTS[slot]))] for slot in sorted(set(slots))}
    return template.format(**choices)
