"""Benchmarks: prompts with the true quality of each model's answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int

from routerjax.data.preferences import Preferences, model_index, require_model_names, require_prompts
from routerjax.errors import InputError
from routerjax.metrics.columns import real_array
from routerjax.prompts import prompt_sha256, require_texts
from routerjax.tables import (
    Texts,
    label_column,
    number_column,
    open_table,
    text_column,
    write_table,
)

# Quality gaps, and their squares, stay finite in float32.
LARGEST_QUALITY = 1e15


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Prompts, and how good each model's answer to each is.

    Attributes:
        name: for tables and plots.
        prompts: what a router sees.
        quality: for each model float64 ``[prompts]``: 1 / 0 for right / wrong, or a grade.
        strong: name of the expensive model, where the benchmark has a usual pair.
        weak: name of the cheap model, likewise.
        domain: subject of each prompt, where there is one.
    """

    name: str
    prompts: tuple[str, ...]
    quality: Mapping[str, Float64[np.ndarray, "prompts"]]
    strong: str | None = None
    weak: str | None = None
    domain: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_texts(self.prompts)
        if not self.prompts:
            raise InputError(f"benchmark {self.name} has no prompts")
        quality = {
            model: real_array(values, f"benchmark {self.name}: quality of {model}").astype(np.float64)
            for model, values in self.quality.items()
        }
        for model, values in quality.items():
            if values.shape != (len(self.prompts),):
                raise InputError(
                    f"benchmark {self.name}: quality of {model} must have one value for each of "
                    f"{len(self.prompts)} prompts, got shape {values.shape}"
                )
            bad = np.flatnonzero(~(np.abs(values) <= LARGEST_QUALITY))
            if bad.size:
                raise InputError(
                    f"benchmark {self.name}: row {bad[0]}: quality of {model} must be finite, and within "
                    f"{LARGEST_QUALITY:g} of zero, got {values[bad[0]]}"
                )
        object.__setattr__(self, "quality", quality)
        for model in (self.strong, self.weak):
            if model is not None:
                model_index(tuple(quality), model)

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Int[np.ndarray, "rows"] | Bool[np.ndarray, "prompts"]) -> Benchmark:
        """The prompts at ``rows``, indices or a mask."""
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Benchmark(
            name=self.name,
            prompts=tuple(self.prompts[row] for row in indices),
            quality={model: values[indices] for model, values in self.quality.items()},
            strong=self.strong,
            weak=self.weak,
            domain=None if self.domain is None else tuple(self.domain[row] for row in indices),
        )


def read_benchmark_table(
    path: str | os.PathLike[str],
    *,
    strong: str | None = None,
    weak: str | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Benchmark:
    """Read a benchmark from a long table: one row a prompt and model.

    Args:
        path: .parquet, .csv or .jsonl with columns ``prompt``, ``model``, ``score``, and optionally ``prompt_id``
            (which tells apart prompts of the same text) and ``domain``.
        strong: name of the expensive model.
        weak: name of the cheap model.
        name: default the file's name.
        progress: show a progress bar, if reading takes more than two seconds.

    Raises:
        InputError: columns missing, a cell that is not what its column must hold (row and column named), a model
            unknown, two texts under one ``prompt_id``, or a prompt without the score of some model or with two.
    """
    opened = open_table(path, progress=progress)
    optional = [column for column in ("prompt_id", "domain") if column in opened.columns]
    table = opened.read(["prompt", "model", "score", *optional], progress=progress)
    prompt, model = (text_column(table, column, path) for column in ("prompt", "model"))
    try:
        require_prompts(prompt.unique, prompt.index)
        require_model_names(model.unique, model.index, "model")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    score = number_column(table, "score", path)
    key = prompt
    if "prompt_id" in optional:
        key = label_column(table, "prompt_id", path)
        _require_one_text(key, prompt, path)
    # The first row of each prompt, in the order of the rows.
    first = np.unique(key.index, return_index=True)[1]
    quality = np.full((len(model.unique), len(key.unique)), np.nan)
    cell = model.index.astype(np.int64) * len(key.unique) + key.index
    _, first_of_cell, own_cell = np.unique(cell, return_index=True, return_inverse=True)
    again = np.flatnonzero(first_of_cell[own_cell.reshape(-1)] != np.arange(len(cell)))
    if again.size:
        name = model.unique[model.index[again[0]]]
        raise InputError(f"{path}: row {again[0]}: a second score of {name!r} for the same prompt")
    quality.reshape(-1)[cell] = score
    for wanted in (strong, weak):
        if wanted is not None:
            model_index(model.unique, wanted)
    pair = [wanted for wanted in (strong, weak) if wanted is not None]
    needed = pair if len(pair) == 2 else sorted(model.unique)
    rows = [model.unique.index(wanted) for wanted in needed]
    prompts = tuple(prompt.unique[prompt.index[row]] for row in first)
    lacking = np.argwhere(np.isnan(quality[rows]).T)
    if lacking.size:
        place, which = lacking[0]
        raise InputError(
            f"{path}: no score of {needed[which]!r} for the prompt {prompts[place][:60]!r}; every prompt needs a "
            "score of every model, or of the strong and the weak one where those are named"
        )
    domain = label_column(table, "domain", path, required=False).rows() if "domain" in optional else None
    return Benchmark(
        name=name or Path(path).stem,
        prompts=prompts,
        quality=dict(zip(needed, quality[rows], strict=True)),
        strong=strong,
        weak=weak,
        domain=None if domain is None else tuple(domain[row] for row in first),
    )


def _require_one_text(key: Texts, prompt: Texts, path: str | os.PathLike[str]) -> None:
    first = np.unique(key.index, return_index=True)[1][key.index]
    different = np.flatnonzero(prompt.index != prompt.index[first])
    if different.size:
        row = different[0]
        raise InputError(
            f"{path}: row {row}: column prompt is another text than in row {first[row]}, which has the same prompt_id "
            f"{key.unique[key.index[row]]!r}"
        )


def write_benchmark_table(benchmark: Benchmark, path: str | os.PathLike[str]) -> None:
    """Write a benchmark as the long table that :func:`read_benchmark_table` reads."""
    models = list(benchmark.quality)
    count = len(benchmark)
    columns = {
        "prompt_id": [f"{benchmark.name}-{row}" for row in range(count)] * len(models),
        "prompt": list(benchmark.prompts) * len(models),
        "model": [model for model in models for _ in range(count)],
        "score": np.concatenate([benchmark.quality[model] for model in models]),
    }
    if benchmark.domain is not None:
        columns["domain"] = list(benchmark.domain) * len(models)
    write_table(pa.table(columns), os.fspath(path))


def smallest_by_hash(benchmark: Benchmark, count: int) -> tuple[Benchmark, Benchmark]:
    """The ``count`` prompts with the smallest SHA-256 (utf-8, no salt; equal prompts in their order), and the others.

    A split that anyone can repeat, and that does not depend on the order of the files.

    Raises:
        InputError: ``count`` leaves one side empty.
    """
    if not 0 < count < len(benchmark):
        raise InputError(f"count must be between 1 and {len(benchmark) - 1} prompts of {benchmark.name}, got {count}")
    hashes = [prompt_sha256(prompt) for prompt in benchmark.prompts]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    is_first = np.zeros(len(hashes), bool)
    is_first[order[:count]] = True
    return benchmark.select(is_first), benchmark.select(~is_first)


def golden_preferences(
    benchmark: Benchmark,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    rename: Mapping[str, str] | None = None,
) -> Preferences:
    """Battles from golden answers: of a pair, the model with the better answer wins; equal answers tie.

    Where every answer is right or wrong (1 or 0), a tie of two wrong ones has the outcome "both bad".

    Args:
        benchmark: with the quality of every model of ``pairs``.
        pairs: (model_a, model_b); default every pair of the benchmark's models.
        rename: other names for the benchmark's models.

    Raises:
        InputError: a model that the benchmark does not have.
    """
    models = list(benchmark.quality)
    if pairs is None:
        pairs = [(a, b) for index, a in enumerate(models) for b in models[index + 1 :]]
    for model in {*(name for pair in pairs for name in pair), *(rename or {})}:
        model_index(models, model)
    renamed = {model: (rename or {}).get(model, model) for model in models}
    knows_bad = all(np.isin(benchmark.quality[model], (0, 1)).all() for model in models)
    outcomes = []
    for a, b in pairs:
        sign = np.sign(benchmark.quality[a] - benchmark.quality[b])
        both_bad = knows_bad & (sign == 0) & (benchmark.quality[a] == 0)
        outcome = np.stack([sign > 0, (sign == 0) & ~both_bad, sign < 0, both_bad], axis=1).astype(np.float32)
        outcomes.append(outcome if knows_bad else outcome[:, :3])
    return Preferences.from_names(
        list(benchmark.prompts) * len(pairs),
        [renamed[a] for a, _ in pairs for _ in benchmark.prompts],
        [renamed[b] for _, b in pairs for _ in benchmark.prompts],
        np.concatenate(outcomes),
    )
