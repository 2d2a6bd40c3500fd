"""Benchmarks: prompts with the true quality of each model's answer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int

from routerjax.data.preferences import Preferences, model_index
from routerjax.errors import InputError, choose
from routerjax.prompts import prompt_sha256
from routerjax.tables import read_table, write_table

ROUTELLM_STRONG = "gpt-4-1106-preview"
ROUTELLM_WEAK = "mistralai/Mixtral-8x7B-Instruct-v0.1"
MMLU_SUBJECTS = 57


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
        if not self.prompts:
            raise InputError(f"benchmark {self.name} has no prompts")
        quality = {model: np.asarray(values, np.float64) for model, values in self.quality.items()}
        for model, values in quality.items():
            if values.shape != (len(self.prompts),):
                raise InputError(
                    f"benchmark {self.name}: quality of {model} must have one value for each of "
                    f"{len(self.prompts)} prompts, got shape {values.shape}"
                )
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise InputError(f"benchmark {self.name}: row {bad[0]}: quality of {model} must be finite")
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


def load_benchmark(name: str, root: str | os.PathLike[str]) -> Benchmark:
    """One of RouteLLM's three benchmarks, without its contaminated prompts.

    Args:
        name: ``mmlu`` (14,037 questions), ``gsm8k`` (1,307), or ``mt_bench`` (72 two-turn questions: routed on the
            first turn, quality the mean grade of both).
        root: the folder ``routellm/evals`` of github.com/lm-sys/RouteLLM.

    Raises:
        InputError: unknown name, or files missing, damaged or incomplete.
    """
    loaders = {"mmlu": _load_mmlu, "gsm8k": _load_gsm8k, "mt_bench": _load_mt_bench}
    load = choose(name, loaders, "the benchmark")
    folder = Path(root) / name
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}: expected RouteLLM's routellm/evals folder, with {', '.join(loaders)} in it, and "
            f"looked in {Path(root).resolve()}; git clone https://github.com/lm-sys/RouteLLM, and name that folder by "
            "--data-root (evaluate) or by the golden source's root (train)"
        )
    return load(folder)


def _contaminated(folder: Path) -> set[str]:
    return set(read_table(folder / "contaminated_prompts.jsonl", columns=["eval_prompt"])["eval_prompt"].to_pylist())


def _load_mmlu(folder: Path) -> Benchmark:
    files = sorted((folder / "responses").glob("mmlu_*.csv"))
    if len(files) != MMLU_SUBJECTS:
        raise InputError(f"{folder / 'responses'} must hold {MMLU_SUBJECTS} files mmlu_SUBJECT.csv, has {len(files)}")
    tables = [_correctness(path) for path in files]
    subjects = [path.stem.removeprefix("mmlu_") for path in files]
    domain = [subject for subject, table in zip(subjects, tables, strict=True) for _ in range(table.num_rows)]
    return _from_correctness("mmlu", pa.concat_tables(tables), folder, domain)


def _load_gsm8k(folder: Path) -> Benchmark:
    return _from_correctness("gsm8k", _correctness(folder / "gsm8k_responses.csv"), folder, None)


def _correctness(path: Path) -> pa.Table:
    table = read_table(path, columns=["prompt", ROUTELLM_STRONG, ROUTELLM_WEAK])
    for model in (ROUTELLM_STRONG, ROUTELLM_WEAK):
        column = table.column(model)
        if not pa.types.is_boolean(column.type) or column.null_count:
            raise InputError(f"{path}: column {model} must be True or False in every row")
    return table


def _from_correctness(name: str, table: pa.Table, folder: Path, domain: Sequence[str] | None) -> Benchmark:
    prompts = table.column("prompt").to_pylist()
    benchmark = Benchmark(
        name=name,
        prompts=tuple(prompts),
        quality={model: table.column(model).to_numpy().astype(float) for model in (ROUTELLM_STRONG, ROUTELLM_WEAK)},
        strong=ROUTELLM_STRONG,
        weak=ROUTELLM_WEAK,
        domain=None if domain is None else tuple(domain),
    )
    contaminated = _contaminated(folder)
    return benchmark.select(np.asarray([prompt not in contaminated for prompt in prompts]))


def _load_mt_bench(folder: Path) -> Benchmark:
    grades: dict[tuple[int, str], list[float]] = {}
    judged = read_table(folder / "judgements.jsonl", columns=["question_id", "model", "turn", "score"])
    for row in judged.to_pylist():
        grades.setdefault((row["question_id"], row["model"]), []).append(row["score"])
    contaminated = _contaminated(folder)
    if not (folder / "question.jsonl").is_file():
        raise InputError(f"no file {folder / 'question.jsonl'}")
    prompts, kept_ids = [], []
    for row, line in enumerate((folder / "question.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        try:
            question = json.loads(line)
            turns, question_id = question["turns"], question["question_id"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{folder / 'question.jsonl'}: line {row} must have question_id and turns") from error
        if contaminated.isdisjoint(turns):
            prompts.append(turns[0])
            kept_ids.append(question_id)
    quality = {}
    for model in (ROUTELLM_STRONG, ROUTELLM_WEAK):
        missing = [identity for identity in kept_ids if len(grades.get((identity, model), ())) != 2]
        if missing:
            raise InputError(f"{folder / 'judgements.jsonl'}: question {missing[0]} needs 2 grades of {model}")
        quality[model] = np.asarray([np.mean(grades[identity, model]) for identity in kept_ids])
    return Benchmark(
        name="mt_bench", prompts=tuple(prompts), quality=quality, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK
    )


def read_benchmark_table(
    path: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None, name: str | None = None
) -> Benchmark:
    """A benchmark from a long table: one row a prompt and model.

    Args:
        path: .parquet, .csv or .jsonl with columns ``prompt``, ``model``, ``score``, and optionally ``prompt_id``
            (which tells apart prompts of the same text) and ``domain``.
        strong: name of the expensive model.
        weak: name of the cheap model.
        name: default the file's name.

    Raises:
        InputError: columns missing, a model unknown, or a prompt without the score of some model.
    """
    table = read_table(path)
    columns = [column for column in ("prompt_id", "domain") if column in table.column_names]
    rows = read_table(path, columns=["prompt", "model", "score", *columns]).to_pylist()
    scores: dict[str, dict[str, float]] = {}
    prompts, domains = {}, {}
    for number, row in enumerate(rows):
        key = row.get("prompt_id") or row["prompt"]
        if not isinstance(row["score"], int | float):
            raise InputError(f"{path}: row {number}: column score must be a number, got {row['score']!r}")
        if row["model"] in scores.setdefault(key, {}):
            raise InputError(f"{path}: row {number}: a second score of {row['model']} for the same prompt")
        scores[key][row["model"]] = row["score"]
        prompts[key], domains[key] = row["prompt"], row.get("domain")
    models = sorted({model for own in scores.values() for model in own})
    for wanted in (strong, weak):
        if wanted is not None:
            model_index(models, wanted)
    pair = [model for model in (strong, weak) if model is not None]
    needed = pair if len(pair) == 2 else models
    for key, own in scores.items():
        lacking = [model for model in needed if model not in own]
        if lacking:
            raise InputError(
                f"{path}: no score of {lacking[0]} for the prompt {prompts[key][:60]!r}; every prompt needs a score of "
                "every model, or of the strong and the weak one where those are named"
            )
    return Benchmark(
        name=name or Path(path).stem,
        prompts=tuple(prompts.values()),
        quality={model: np.asarray([own[model] for own in scores.values()]) for model in needed},
        strong=strong,
        weak=weak,
        domain=tuple(map(str, domains.values())) if "domain" in columns else None,
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
    called = {model: (rename or {}).get(model, model) for model in models}
    outcomes = []
    for a, b in pairs:
        sign = np.sign(benchmark.quality[a] - benchmark.quality[b])
        outcomes.append(np.stack([sign > 0, sign == 0, sign < 0], axis=1).astype(np.float32))
    return Preferences.from_names(
        list(benchmark.prompts) * len(pairs),
        [called[a] for a, _ in pairs for _ in benchmark.prompts],
        [called[b] for _, b in pairs for _ in benchmark.prompts],
        np.concatenate(outcomes),
    )
