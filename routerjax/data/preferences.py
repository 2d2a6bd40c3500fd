"""Preference data: battles between two models on a prompt, as columns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32

from routerjax.errors import InputError, model_column, nearest
from routerjax.prompts import require_texts
from routerjax.tables import first_appearance

OUTCOMES = ("model_a", "tie", "model_b", "both_bad")
"""Names of the outcomes: a wins, a tie, b wins; and a tie of two bad answers, where the data tells it from others."""

# Probabilities read from text files are rounded; a row that misses 1 by more than this is a mistake.
ROW_SUM_TOLERANCE = 1e-3

# Battles are validated so many at a time.
ROWS_A_PART = 2**16

# Of one battle: sums of them, and their squares, stay finite in float32.
LARGEST_WEIGHT = 1e12


@dataclass(frozen=True, eq=False)
class Preferences:
    """Battles, one a row; validated, and normalised so that each outcome sums to 1.

    Attributes:
        unique_prompts: each prompt once, in the order of first appearance.
        prompt_index: int32 ``[battles]``, the place of each battle's prompt in ``unique_prompts``.
        model_a: column of the first model, int32 ``[battles]``, an index into ``models``.
        model_b: likewise the second.
        outcome: float32 ``[battles, 3]``: P(a wins), P(tie), P(b wins), hard or soft; or ``[battles, 4]``, with P(both
            answers are bad) in a column of its own, where the data tells such ties from others. A tie and a coin-flip
            judgement are different things: ``(0, 1, 0)`` and ``(0.5, 0, 0.5)``.
        weight: float32 ``[battles]``, non-negative.
        models: the vocabulary: names of the models, without white space around them.

    Prompts that are given in another order are brought into that of first appearance; one that no battle is on is left
    out.

    Raises:
        InputError: a row that cannot be a battle; the message names row and column.
    """

    unique_prompts: tuple[str, ...]
    prompt_index: Int32[np.ndarray, "battles"]
    model_a: Int32[np.ndarray, "battles"]
    model_b: Int32[np.ndarray, "battles"]
    outcome: Float32[np.ndarray, "battles outcomes"]
    weight: Float32[np.ndarray, "battles"]
    models: tuple[str, ...]

    def __post_init__(self) -> None:
        num_battles = len(self.prompt_index)
        if num_battles == 0:
            raise InputError("no battles: expected at least one row")
        shapes: dict[str, tuple[int, ...]] = {
            name: (num_battles,) for name in ("prompt_index", "model_a", "model_b", "weight")
        }
        shapes["outcome"] = (num_battles, 4 if np.shape(self.outcome)[1:] == (4,) else 3)
        for name, shape in shapes.items():
            column = np.asarray(getattr(self, name), None if name in ("weight", "outcome") else np.int32)
            if column.shape != shape:
                raise InputError(f"{name} must have shape {shape}, one row for each prompt, got {column.shape}")
            object.__setattr__(self, name, column)
        if len(set(self.models)) != len(self.models):
            raise InputError("models must be different names")
        if len(set(self.unique_prompts)) != len(self.unique_prompts):
            raise InputError("unique_prompts must be different texts")
        self._validate()
        order, prompt_index = first_appearance(self.prompt_index, len(self.unique_prompts))
        if not np.array_equal(order, np.arange(len(self.unique_prompts))):
            object.__setattr__(self, "unique_prompts", tuple(self.unique_prompts[place] for place in order.tolist()))
        object.__setattr__(self, "prompt_index", prompt_index)
        outcome = _by_parts(lambda part: (part / part.sum(axis=1, keepdims=True)).astype(np.float32), self.outcome)
        object.__setattr__(self, "outcome", outcome)
        object.__setattr__(self, "weight", self.weight.astype(np.float32))

    def _validate(self) -> None:
        for name, known in (
            ("prompt_index", self.unique_prompts),
            ("model_a", self.models),
            ("model_b", self.models),
        ):
            column = getattr(self, name)
            _require_rows(
                (column >= 0) & (column < len(known)), name, f"an index below {len(known)}", column.__getitem__
            )
        require_prompts(self.unique_prompts, self.prompt_index)
        for name in ("model_a", "model_b"):
            require_model_names(self.models, getattr(self, name), name)
        different = self.model_a != self.model_b
        _require_rows(different, "model_b", "another model than model_a", lambda row: self.models[self.model_b[row]])
        proper = _by_parts(_is_distribution, self.outcome)
        _require_rows(
            proper, "outcome", "probabilities that sum to 1", lambda row: self.outcome[row].astype(float).tolist()
        )
        usable = _by_parts(lambda part: np.isfinite(part) & (part >= 0) & (part <= LARGEST_WEIGHT), self.weight)
        expected = f"finite and not negative, and at most {LARGEST_WEIGHT:g}"
        _require_rows(usable, "weight", expected, lambda row: self.weight[row].astype(float))
        if not self.weight.any():
            raise InputError("weight is 0 in every row: nothing to learn from")

    @classmethod
    def from_names(
        cls,
        prompts: Sequence[str],
        model_a: Sequence[str],
        model_b: Sequence[str],
        outcome: Float32[np.ndarray, "battles outcomes"],
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
        require_texts(prompts)
        for column, names in (("model_a", model_a), ("model_b", model_b)):
            for row, name in enumerate(names):
                if not isinstance(name, str):
                    raise InputError(f"row {row}: column {column} must be a model's name, got {name!r}")
        vocabulary = tuple(sorted({*model_a, *model_b})) if models is None else tuple(models)
        columns = {name: column for column, name in enumerate(vocabulary)}
        for column, names in (("model_a", model_a), ("model_b", model_b)):
            for row, name in enumerate(names):
                if name not in columns:
                    known = nearest(name, vocabulary)
                    raise InputError(f"row {row}: column {column}: {name!r} is not one of the models{known}")
        place: dict[str, int] = {}
        return cls(
            prompt_index=np.fromiter((place.setdefault(prompt, len(place)) for prompt in prompts), np.int32),
            unique_prompts=tuple(place),
            model_a=np.asarray([columns[name] for name in model_a], np.int32),
            model_b=np.asarray([columns[name] for name in model_b], np.int32),
            outcome=outcome,
            weight=np.ones(len(prompts), np.float32) if weight is None else weight,
            models=vocabulary,
        )

    def __len__(self) -> int:
        return len(self.prompt_index)

    @property
    def label(self) -> Float32[np.ndarray, "battles"]:
        """P(a is better), ties of both kinds counting half."""
        return self.outcome[:, 0] + np.float32(0.5) * self.outcome[:, 1::2].sum(axis=1)

    @functools.cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each battle."""
        return tuple(self.unique_prompts[place] for place in self.prompt_index.tolist())

    def select(self, rows: Int[np.ndarray, "rows"] | Bool[np.ndarray, "battles"]) -> Preferences:
        """The battles at ``rows``, indices or a mask; the vocabulary stays."""
        columns = ("prompt_index", "model_a", "model_b", "outcome", "weight")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def exchange_sides(self, where: Bool[np.ndarray, "battles"]) -> Preferences:
        """Return the same battles, some with model_a and model_b, and with them the outcome, the other way round."""
        outcome = self.outcome.copy()
        outcome[where] = outcome[where][:, [2, 1, 0, 3][: outcome.shape[1]]]
        return dataclasses.replace(
            self,
            model_a=np.where(where, self.model_b, self.model_a),
            model_b=np.where(where, self.model_a, self.model_b),
            outcome=outcome,
        )

    def without_unused_models(self) -> Preferences:
        """Return the same battles over the models that occur in them."""
        used = np.flatnonzero(
            np.bincount(self.model_a, minlength=len(self.models))
            + np.bincount(self.model_b, minlength=len(self.models))
        )
        if len(used) == len(self.models):
            return self
        return dataclasses.replace(
            self,
            model_a=np.searchsorted(used, self.model_a),
            model_b=np.searchsorted(used, self.model_b),
            models=tuple(self.models[index] for index in used),
        )


def _by_parts(function: Callable[[np.ndarray], np.ndarray], column: np.ndarray) -> np.ndarray:
    """Apply a function of rows to a column in float64, of which few rows are copied at a time."""
    parts = (column[start : start + ROWS_A_PART] for start in range(0, len(column), ROWS_A_PART))
    return np.concatenate([function(part.astype(np.float64)) for part in parts])


def _is_distribution(outcome: Float64[np.ndarray, "rows outcomes"]) -> Bool[np.ndarray, "rows"]:
    with np.errstate(invalid="ignore"):  # infinity less infinity is not 1
        sums_to_one = np.abs(outcome.sum(axis=1) - 1) <= ROW_SUM_TOLERANCE
    return sums_to_one & (outcome >= 0).all(axis=1)


def _require_rows(good: Bool[np.ndarray, "rows"], column: str, expected: str, value: Callable[[int], object]) -> None:
    bad = np.flatnonzero(~good)
    if bad.size:
        others = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        got = value(bad[0])
        shown = got.item() if isinstance(got, np.generic) else got
        raise InputError(f"row {bad[0]}: column {column} must be {expected}, got {shown!r}{others}")


def require_prompts(unique: Sequence[str], index: Int[np.ndarray, "rows"]) -> None:
    """Raise InputError, with the row, where a prompt has no text.

    Args:
        unique: the different prompts.
        index: of each row's prompt among them.
    """
    has_text = np.asarray([bool(prompt.strip()) for prompt in unique], bool)
    _require_rows(has_text[index], "prompt", "text that is not empty", lambda row: unique[index[row]])


def require_model_names(names: Sequence[str], index: Int[np.ndarray, "rows"], column: str) -> None:
    """Raise InputError, with the row, where a model's name is empty or has white space around it.

    ``"gpt-4 "`` beside ``"gpt-4"`` would be another model, which nobody means.

    Args:
        names: the different names.
        index: of each row's name among them.
        column: the column that they stand in.
    """
    is_name = np.asarray([bool(name) and name == name.strip() for name in names], bool)
    expected = "a name that is not empty, without white space around it"
    _require_rows(is_name[index], column, expected, lambda row: names[index[row]])


def model_index(models: Sequence[str], name: str) -> int:
    """The column of a model.

    Raises:
        InputError: unknown; says which there are, or how many, and the nearest.
    """
    return model_column(name, models, "the")
