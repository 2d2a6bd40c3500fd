"""Battles made of battles: joined, with other sides, with one judgement for both orders, split by prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from routerjax.data.preferences import Preferences
from routerjax.errors import InputError
from routerjax.prompts import prompt_sha256

logger = logging.getLogger(__name__)


def concatenate(parts: Sequence[Preferences]) -> Preferences:
    """Battles of several sources over the union of their vocabularies, in ASCII order.

    Ties of two bad answers keep their column if every source tells them from others, or has no ties. Else they become
    ties like those of the source that does not, which is logged.
    """
    models = tuple(sorted({name for part in parts for name in part.models}))
    place = {name: column for column, name in enumerate(models)}
    maps = [np.asarray([place[name] for name in part.models], np.int32) for part in parts]
    prompt_place: dict[str, int] = {}
    prompt_maps = [
        np.asarray([prompt_place.setdefault(prompt, len(prompt_place)) for prompt in part.unique_prompts], np.int32)
        for part in parts
    ]
    return Preferences(
        unique_prompts=tuple(prompt_place),
        prompt_index=np.concatenate([new[part.prompt_index] for new, part in zip(prompt_maps, parts, strict=True)]),
        model_a=np.concatenate([new[part.model_a] for new, part in zip(maps, parts, strict=True)]),
        model_b=np.concatenate([new[part.model_b] for new, part in zip(maps, parts, strict=True)]),
        outcome=_joined_outcomes(parts),
        weight=np.concatenate([part.weight for part in parts]),
        models=models,
    )


def _joined_outcomes(parts: Sequence[Preferences]) -> Float32[np.ndarray, "battles outcomes"]:
    if len({part.outcome.shape[1] for part in parts}) == 1:
        return np.concatenate([part.outcome for part in parts])
    outcome = np.concatenate([np.pad(part.outcome, ((0, 0), (0, 4 - part.outcome.shape[1]))) for part in parts])
    untold = [part for part in parts if part.outcome.shape[1] == 3]
    ties = sum(int(np.count_nonzero(part.outcome[:, 1])) for part in untold)
    if ties == 0 and len(untold) < len(parts):
        return outcome
    both_bad = np.count_nonzero(outcome[:, 3])
    if both_bad:
        logger.warning(
            "%d battles whose answers are both bad become ties like others, since %d ties of other sources may be "
            "either",
            *(both_bad, ties),
        )
    return outcome[:, :3] + outcome[:, 3:] * np.asarray([0, 1, 0], np.float32)


def swap_sides(battles: Preferences, *, seed: int) -> Preferences:
    """Exchange model_a and model_b, and the outcome with them, in half of the battles, chosen at random.

    Where one side is always the reference model, a learner could otherwise learn the side.
    """
    return battles.exchange_sides(np.random.default_rng(seed).random(len(battles)) < 0.5)


def merge_both_orders(battles: Preferences) -> Preferences:
    """Put one battle in place of those that judged the same prompt and pair in both orders: position bias cancels.

    Its outcome is the mean of the two orders', each the weighted mean of its battles; its weight is the mean of theirs,
    so that a comparison that was judged twice counts once. It stands, as it was ordered, where the first of its battles
    stood. Comparisons that were judged in one order alone stay as they are.

    Example:
        >>> prefers_first = np.array([[1, 0, 0], [1, 0, 0]])
        >>> merged = merge_both_orders(Preferences.from_names(["p", "p"], ["x", "y"], ["y", "x"], prefers_first))
        >>> len(merged), merged.outcome.tolist(), merged.weight.tolist()
        (1, [[0.5, 0.0, 0.5]], [1.0])
    """
    pair = np.sort(np.stack([battles.model_a, battles.model_b], axis=1), axis=1)
    key = np.concatenate([battles.prompt_index[:, None], pair], axis=1)
    _, first, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    first_row = first[group.reshape(-1)]  # of each battle's comparison
    is_other = battles.model_a != battles.model_a[first_row]
    one_way, order = battles.exchange_sides(is_other).outcome, is_other.astype(np.int32)
    weight = np.zeros((len(battles), 2))
    outcome = np.zeros((len(battles), 2, one_way.shape[1]))
    battle_weight = battles.weight.astype(np.float64)
    np.add.at(weight, (first_row, order), battle_weight)
    np.add.at(outcome, (first_row, order), battle_weight[:, None] * one_way)
    both = np.all(weight > 0, axis=1)
    merged_outcome, merged_weight = battles.outcome.copy(), battles.weight.copy()
    merged_outcome[both] = (outcome[both] / weight[both][:, :, None]).mean(axis=1)
    merged_weight[both] = weight[both].mean(axis=1)
    merged = dataclasses.replace(battles, outcome=merged_outcome, weight=merged_weight)
    return merged.select(~both[first_row] | np.equal(first_row, np.arange(len(battles))))


def split_by_prompt(battles: Preferences, *, validation_fraction: float, seed: int) -> tuple[Preferences, Preferences]:
    """Training and validation battles, no prompt on both sides.

    A prompt's side depends on the prompt and the seed alone: battles added later move nothing.

    Args:
        battles: what to split.
        validation_fraction: expected share of prompts in validation, in (0, 1).
        seed: another seed is another split.

    Raises:
        InputError: the fraction is outside (0, 1), or one side comes out empty.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must be in (0, 1), got {validation_fraction!r}")
    salt = f"validation {seed}:".encode()
    draws = [
        int.from_bytes(hashlib.sha256(salt + prompt_sha256(prompt)).digest()[:8], "big") / 2**64
        for prompt in battles.unique_prompts
    ]
    held_out = (np.asarray(draws) < validation_fraction)[battles.prompt_index]
    if held_out.all() or not held_out.any():
        raise InputError(
            f"a validation_fraction of {validation_fraction} of {len(battles.unique_prompts)} prompts leaves one side "
            "empty, as each prompt is drawn by itself; give more prompts or another fraction (data.validation_fraction)"
        )
    return battles.select(~held_out), battles.select(held_out)


def require_both_outcomes(battles: Preferences) -> None:
    """Raise InputError where battles teach no router anything, since all that count have one label.

    That is so where each is a tie or a coin flip, of any models; and where there are two models and the label of the
    alphabetically first one is constant, however sides are arranged.
    """
    counts = battles.weight > 0
    first, second = (
        np.minimum(battles.model_a, battles.model_b)[counts],
        np.maximum(battles.model_a, battles.model_b)[counts],
    )
    label = np.where(battles.model_a < battles.model_b, battles.label, 1 - battles.label)[counts]
    if np.ptp(label) > 0:
        return
    if label[0] == 0.5:
        raise InputError(
            "one class only: every battle is a tie or a coin flip; a router needs battles that are decided"
        )
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        raise InputError(
            f"one class only: every battle of {battles.models[first[0]]} against {battles.models[second[0]]} has the "
            f"label {float(label[0])} (1 where the first wins, 0 where the second does); a router needs prompts on "
            "which they differ"
        )
