"""Preference data: battles between two models on a prompt, as columns."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from routerjax.errors import InputError, model_column, nearest
from routerjax.prompts import prompt_sha256

OUTCOMES: Mapping[str, tuple[float, float, float]] = {
    "model_a": (1.0, 0.0, 0.0),
    "tie": (0.0, 1.0, 0.0),
    "model_b": (0.0, 0.0, 1.0),
}
"""The hard outcomes: P(a wins), P(tie), P(b wins)."""

# Probabilities read from text files are rounded; a row that misses 1 by more than this is a mistake.
ROW_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Preferences:
    """Battles, one a row; validated, and normalised so that each outcome sums to 1.

    Attributes:
        prompts: the prompt of each battle.
        model_a: column of the first model, int32 ``[battles]``, an index into ``models``.
        model_b: likewise the second.
        outcome: float32 ``[battles, 3]``: P(a wins), P(tie), P(b wins), hard or soft. A tie and a coin-flip judgement
            are different things: ``(0, 1, 0)`` and ``(0.5, 0, 0.5)``.
        weight: float32 ``[battles]``, non-negative.
        models: the vocabulary: names of the models.

    Raises:
        InputError: a row that cannot be a battle; the message names row and column.
    """

    prompts: tuple[str, ...]
    model_a: Int32[np.ndarray, "battles"]
    model_b: Int32[np.ndarray, "battles"]
    outcome: Float32[np.ndarray, "battles 3"]
    weight: Float32[np.ndarray, "battles"]
    models: tuple[str, ...]

    def __post_init__(self) -> None:
        num_battles = len(self.prompts)
        if num_battles == 0:
            raise InputError("no battles: expected at least one row")
        shapes = {"model_a": (num_battles,), "model_b": (num_battles,), "outcome": (num_battles, 3)}
        shapes["weight"] = (num_battles,)
        for name, shape in shapes.items():
            dtype = np.int32 if name.startswith("model") else np.float64
            column = np.asarray(getattr(self, name), dtype)
            if column.shape != shape:
                raise InputError(f"{name} must have shape {shape}, one row for each prompt, got {column.shape}")
            object.__setattr__(self, name, column)
        if len(set(self.models)) != len(self.models):
            raise InputError("models must be different names")
        self._validate()
        outcome = self.outcome / self.outcome.sum(axis=1, keepdims=True)
        object.__setattr__(self, "outcome", outcome.astype(np.float32))
        object.__setattr__(self, "weight", self.weight.astype(np.float32))

    def _validate(self) -> None:
        has_text = np.fromiter((bool(prompt.strip()) for prompt in self.prompts), bool, len(self.prompts))
        _require_rows(has_text, "prompt", "text that is not empty", self.prompts)
        for name in ("model_a", "model_b"):
            column = getattr(self, name)
            inside = (column >= 0) & (column < len(self.models))
            _require_rows(inside, name, f"an index below {len(self.models)}", column)
        different = self.model_a != self.model_b
        _require_rows(different, "model_b", "another model than model_a", [self.models[i] for i in self.model_b])
        finite = np.all(np.isfinite(self.outcome), axis=1)
        proper = finite & (self.outcome >= 0).all(axis=1)
        proper &= np.abs(np.where(finite[:, None], self.outcome, 0).sum(axis=1) - 1) <= ROW_SUM_TOLERANCE
        _require_rows(proper, "outcome", "probabilities that sum to 1", self.outcome.tolist())
        usable = np.isfinite(self.weight) & (self.weight >= 0)
        _require_rows(usable, "weight", "finite and not negative", self.weight.tolist())
        if not self.weight.any():
            raise InputError("weight is 0 in every row: nothing to learn from")

    @classmethod
    def from_names(
        cls,
        prompts: Sequence[str],
        model_a: Sequence[str],
        model_b: Sequence[str],
        outcome: Float32[np.ndarray, "battles 3"],
        weight: Float32[np.ndarray, "battles"] | None = None,
        models: Sequence[str] | None = None,
    ) -> Preferences:
        """Battles between models given by name.

        Args:
            prompts, model_a, model_b: one entry a battle.
            outcome: see the class.
            weight: default 1 for every battle.
            models: the vocabulary; default the names that occur, in ASCII order.

        Raises:
            InputError: a name that is not in ``models`` (row and column named), or as the class.

        Example:
            >>> battles = Preferences.from_names(["hi"], ["b"], ["a"], np.array([[0, 1, 0]]))
            >>> battles.models, battles.label.tolist()
            (('a', 'b'), [0.5])
        """
        vocabulary = tuple(sorted({*model_a, *model_b})) if models is None else tuple(models)
        columns = {name: column for column, name in enumerate(vocabulary)}
        for column, names in (("model_a", model_a), ("model_b", model_b)):
            for row, name in enumerate(names):
                if name not in columns:
                    known = nearest(name, vocabulary)
                    raise InputError(f"row {row}: column {column}: {name!r} is not one of the models{known}")
        return cls(
            prompts=tuple(prompts),
            model_a=np.asarray([columns[name] for name in model_a], np.int32),
            model_b=np.asarray([columns[name] for name in model_b], np.int32),
            outcome=outcome,
            weight=np.ones(len(prompts), np.float32) if weight is None else weight,
            models=vocabulary,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def label(self) -> Float32[np.ndarray, "battles"]:
        """P(a is better), a tie counting half."""
        return self.outcome[:, 0] + np.float32(0.5) * self.outcome[:, 1]

    @functools.cached_property
    def unique_prompts(self) -> tuple[str, ...]:
        """Each prompt once, in the order of first appearance."""
        return tuple(dict.fromkeys(self.prompts))

    @functools.cached_property
    def prompt_index(self) -> Int32[np.ndarray, "battles"]:
        """Each battle's place in :attr:`unique_prompts`."""
        place = {prompt: index for index, prompt in enumerate(self.unique_prompts)}
        return np.fromiter((place[prompt] for prompt in self.prompts), np.int32, len(self))

    def select(self, rows: Int[np.ndarray, "rows"] | Bool[np.ndarray, "battles"]) -> Preferences:
        """The battles at ``rows``, indices or a mask; the vocabulary stays."""
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Preferences(
            prompts=tuple(self.prompts[row] for row in indices),
            model_a=self.model_a[indices],
            model_b=self.model_b[indices],
            outcome=self.outcome[indices],
            weight=self.weight[indices],
            models=self.models,
        )

    def without_unused_models(self) -> Preferences:
        """The same battles over the models that occur in them."""
        used = np.unique(np.concatenate([self.model_a, self.model_b]))
        return dataclasses.replace(
            self,
            model_a=np.searchsorted(used, self.model_a),
            model_b=np.searchsorted(used, self.model_b),
            models=tuple(self.models[index] for index in used),
        )


def _require_rows(good: Bool[np.ndarray, "rows"], column: str, expected: str, values: Sequence[object]) -> None:
    bad = np.flatnonzero(~good)
    if bad.size:
        others = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        raise InputError(f"row {bad[0]}: column {column} must be {expected}, got {values[bad[0]]!r}{others}")


def concatenate(parts: Sequence[Preferences]) -> Preferences:
    """Battles of several sources over the union of their vocabularies, in ASCII order."""
    models = tuple(sorted({name for part in parts for name in part.models}))
    place = {name: column for column, name in enumerate(models)}
    maps = [np.asarray([place[name] for name in part.models], np.int32) for part in parts]
    return Preferences(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        model_a=np.concatenate([new[part.model_a] for new, part in zip(maps, parts, strict=True)]),
        model_b=np.concatenate([new[part.model_b] for new, part in zip(maps, parts, strict=True)]),
        outcome=np.concatenate([part.outcome for part in parts]),
        weight=np.concatenate([part.weight for part in parts]),
        models=models,
    )


def swap_sides(battles: Preferences, *, seed: int) -> Preferences:
    """Exchange model_a and model_b, and the outcome with them, in half of the battles, chosen at random.

    Where one side is always the reference model, a learner could otherwise learn the side.
    """
    swap = np.random.default_rng(seed).random(len(battles)) < 0.5
    return dataclasses.replace(
        battles,
        model_a=np.where(swap, battles.model_b, battles.model_a),
        model_b=np.where(swap, battles.model_a, battles.model_b),
        outcome=np.where(swap[:, None], battles.outcome[:, ::-1], battles.outcome),
    )


def merge_both_orders(battles: Preferences) -> Preferences:
    """One battle in place of those that judged the same prompt and pair in both orders: position bias cancels.

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
    order = np.not_equal(battles.model_a, battles.model_a[first_row]).astype(np.int32)
    weight = np.zeros((len(battles), 2))
    outcome = np.zeros((len(battles), 2, 3))
    own = battles.weight.astype(np.float64)
    np.add.at(weight, (first_row, order), own)
    np.add.at(outcome, (first_row, order), own[:, None] * battles.outcome)
    both = np.all(weight > 0, axis=1)
    mean = outcome[both] / weight[both][:, :, None]
    merged_outcome, merged_weight = battles.outcome.copy(), battles.weight.copy()
    merged_outcome[both] = (mean[:, 0] + mean[:, 1, ::-1]) / 2
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
            "empty; give more prompts or another fraction"
        )
    return battles.select(~held_out), battles.select(held_out)


def model_index(models: Sequence[str], name: str) -> int:
    """The column of a model.

    Raises:
        InputError: unknown; says which there are, or how many, and the nearest.
    """
    return model_column(name, models, "the")


def require_both_outcomes(battles: Preferences) -> None:
    """Raise InputError where every battle has the same label for the alphabetically first model: nothing to learn.

    Sides do not matter: a set in which model x beats y in every row is refused however its sides are arranged.
    """
    first_is_a = battles.model_a < battles.model_b
    label = np.where(first_is_a, battles.label, 1 - battles.label)
    pairs = np.unique(np.sort(np.stack([battles.model_a, battles.model_b]), axis=0), axis=1)
    if pairs.shape[1] == 1 and np.ptp(label) == 0:
        first, second = (battles.models[index] for index in pairs[:, 0])
        raise InputError(
            f"one class only: every battle of {first} against {second} has the label {float(label[0])}; "
            "a router needs prompts on which they differ"
        )
