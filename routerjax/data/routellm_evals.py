"""RouteLLM's three benchmarks, from its folder of evaluations."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from routerjax.data.benchmarks import Benchmark
from routerjax.errors import InputError, choose
from routerjax.prompts import valid_text
from routerjax.tables import flag_column, json_objects, number_column, read_table, text_column

ROUTELLM_STRONG = "gpt-4-1106-preview"
ROUTELLM_WEAK = "mistralai/Mixtral-8x7B-Instruct-v0.1"
MMLU_SUBJECTS = 57


def load_benchmark(name: str, root: str | os.PathLike[str]) -> Benchmark:
    """Load one of RouteLLM's three benchmarks, without its contaminated prompts.

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
    path = folder / "contaminated_prompts.jsonl"
    return set(text_column(read_table(path, columns=["eval_prompt"]), "eval_prompt", path).unique)


def _load_mmlu(folder: Path) -> Benchmark:
    files = sorted((folder / "responses").glob("mmlu_*.csv"))
    if len(files) != MMLU_SUBJECTS:
        raise InputError(f"{folder / 'responses'} must hold {MMLU_SUBJECTS} files mmlu_SUBJECT.csv, has {len(files)}")
    return _from_correctness("mmlu", files, folder, [path.stem.removeprefix("mmlu_") for path in files])


def _load_gsm8k(folder: Path) -> Benchmark:
    return _from_correctness("gsm8k", [folder / "gsm8k_responses.csv"], folder, None)


def _from_correctness(name: str, files: Sequence[Path], folder: Path, domains: Sequence[str] | None) -> Benchmark:
    """A benchmark from tables that say which of the two models answered rightly; each file may be a domain."""
    prompts: list[str] = []
    domain: list[str] = []
    parts: dict[str, list[Bool[np.ndarray, "rows"]]] = {model: [] for model in (ROUTELLM_STRONG, ROUTELLM_WEAK)}
    for place, path in enumerate(files):
        table = read_table(path, columns=["prompt", *parts])
        prompts += text_column(table, "prompt", path).rows()
        domain += [domains[place]] * table.num_rows if domains is not None else []
        for model, correct in parts.items():
            correct.append(flag_column(table, model, path))
    benchmark = Benchmark(
        name=name,
        prompts=tuple(prompts),
        quality={model: np.concatenate(correct).astype(float) for model, correct in parts.items()},
        strong=ROUTELLM_STRONG,
        weak=ROUTELLM_WEAK,
        domain=None if domains is None else tuple(domain),
    )
    contaminated = _contaminated(folder)
    return benchmark.select(np.asarray([prompt not in contaminated for prompt in prompts]))


def _load_mt_bench(folder: Path) -> Benchmark:
    grades: dict[tuple[float, str], list[float]] = {}
    path = folder / "judgements.jsonl"
    judged = read_table(path, columns=["question_id", "model", "score"])
    columns = (number_column(judged, name, path).tolist() for name in ("question_id", "score"))
    for identity, score, model in zip(*columns, text_column(judged, "model", path).rows(), strict=True):
        grades.setdefault((identity, model), []).append(score)
    contaminated = _contaminated(folder)
    prompts, kept_ids = [], []
    for identity, turns in _questions(folder / "question.jsonl"):
        if contaminated.isdisjoint(turns):
            prompts.append(turns[0])
            kept_ids.append(identity)
    quality = {}
    for model in (ROUTELLM_STRONG, ROUTELLM_WEAK):
        missing = [identity for identity in kept_ids if len(grades.get((identity, model), ())) != 2]
        if missing:
            raise InputError(f"{path}: question {missing[0]:g} needs 2 grades of {model}")
        quality[model] = np.asarray([np.mean(grades[identity, model]) for identity in kept_ids])
    return Benchmark(
        name="mt_bench", prompts=tuple(prompts), quality=quality, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK
    )


def _questions(path: Path) -> Iterator[tuple[float, list[str]]]:
    """The number and the turns of each of MT-Bench's questions."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    with path.open("rb") as stream:
        for line, _, question in json_objects(stream, path):
            identity, turns = question.get("question_id"), question.get("turns")
            texts = [valid_text(turn) for turn in turns if isinstance(turn, str)] if isinstance(turns, list) else []
            is_conversation = isinstance(turns, list) and 0 < len(turns) == len(texts)
            if not isinstance(identity, int | float) or isinstance(identity, bool) or not is_conversation:
                raise InputError(
                    f"{path}: line {line} must have question_id, a number, and turns, a list of texts, got "
                    f"{reprlib.repr(identity)} and {reprlib.repr(turns)}"
                )
            yield float(identity), texts
