"""Evaluation of router folders and score files into a folder of results."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from routerjax.atomic import new_directory, refuse_existing
from routerjax.data import Benchmark, load_benchmark, read_benchmark_table, smallest_by_hash
from routerjax.errors import InputError
from routerjax.evaluation.controls import CONTROLS, control_win_probs
from routerjax.evaluation.evaluate import BenchmarkResult, ScoredPair, evaluate, find_pair
from routerjax.evaluation.plots import plot_curves, require_plots
from routerjax.evaluation.report import markdown_table, results_json
from routerjax.evaluation.report_html import html_report
from routerjax.features import EmbeddingCache
from routerjax.metrics import RESAMPLES, Resamples
from routerjax.router import Router, load_router, router_folder
from routerjax.tables import ENDINGS, number_column, read_table, text_column

logger = logging.getLogger(__name__)


class _Task(NamedTuple):
    """A benchmark, its pair of models, and by name the win probabilities of outside routers."""

    benchmark: Benchmark
    strong: str
    weak: str
    outside: dict[str, Float64[np.ndarray, "prompts"]]


def evaluate_routers(
    routers: Sequence[str | os.PathLike[str]],
    *,
    benchmarks: Sequence[str],
    data_root: str | os.PathLike[str] = ".",
    score_files: Sequence[str | os.PathLike[str]] = (),
    strong: str | None = None,
    weak: str | None = None,
    exclude_smallest: int = 0,
    resamples: Resamples = RESAMPLES,
    encoder: str | None = None,
    output: str | os.PathLike[str],
) -> list[BenchmarkResult]:
    """Evaluate routers and outside scores beside the controls.

    ``output`` then holds ``report.html``, ``results.json``, ``results.md`` and ``curves.png``. A run of
    :func:`routerjax.pipeline.train_router` brings its nearest-neighbour control along (its folder ``knn``).

    Args:
        routers: router folders, or runs.
        benchmarks: ``mmlu``, ``gsm8k``, ``mt_bench``, or paths of benchmark tables.
        data_root: RouteLLM's ``evals`` folder, for the three names.
        score_files: tables with columns ``prompt`` and ``win_prob`` that hold every prompt of every benchmark.
        strong: the expensive model; default the benchmark's own. A router is scored on the benchmark's pair where it
            knows both names, else on its own pair, and the results say which.
        weak: the cheap model, likewise.
        exclude_smallest: leave out the prompts with the smallest SHA-256, as many as this.
        resamples: of the prompts; the random control has their seed.
        encoder: where to look for the encoder, if not where the routers say.
        output: a new folder.

    Raises:
        InputError: whatever cannot be used; nothing is written then.
    """
    refuse_existing(Path(output))
    require_plots()
    if not routers and not score_files:
        raise InputError("nothing to evaluate: name at least one router folder, or a file of scores (--scores)")
    if encoder is not None and not routers:
        raise InputError(f"--encoder is of routers, and none is named: leave {encoder} out")
    for paths in (routers, score_files, benchmarks):
        _require_different([os.fspath(path) for path in paths], "is named twice: once is enough")
    stems = [Path(name).stem for name in benchmarks]
    _require_different(stems, "is the name of two benchmarks, which no report could tell apart: rename a file")
    loaded = _load(routers, encoder)
    named_scores = _named({Path(path).stem: path for path in score_files}, score_files)
    for name in named_scores:
        if name in loaded or name in CONTROLS:
            whose = "a router's" if name in loaded else "a control's"
            raise InputError(f"{named_scores[name]}: {name} is {whose} name in this evaluation: rename the file")
    if set(loaded) & set(CONTROLS):
        name = min(set(loaded) & set(CONTROLS))
        raise InputError(f"{name} is a control's name in this evaluation: rename the router's folder")
    # All that can be refused is refused before the prompts are scored, which may take minutes.
    tasks = []
    for name in benchmarks:
        benchmark = _open_benchmark(name, data_root, strong, weak)
        if exclude_smallest < 0:
            raise InputError(f"exclude_smallest (--exclude-smallest) must be at least 0, got {exclude_smallest}")
        if exclude_smallest:
            _, benchmark = smallest_by_hash(benchmark, exclude_smallest)
        outside = {outsider: read_scores(path, benchmark) for outsider, path in named_scores.items()}
        tasks.append(_Task(benchmark, *find_pair(benchmark, strong, weak), outside))
    for name, router in loaded.items():
        try:
            router.featurizer.require_text()
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    with EmbeddingCache() as cache:
        results = [_evaluate(task, loaded, cache=cache, resamples=resamples) for task in tasks]
    with new_directory(output) as folder:
        described = {**results_json(results), "excluded_smallest_sha256": exclude_smallest}
        text = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        (folder / "results.md").write_text(markdown_table(results), encoding="utf-8")
        (folder / "report.html").write_text(html_report(results), encoding="utf-8")
        plot_curves(results, folder / "curves.png")
    return results


def _evaluate(
    task: _Task, routers: Mapping[str, Router], *, cache: EmbeddingCache, resamples: Resamples
) -> BenchmarkResult:
    benchmark, strong, weak, outside = task
    pairs = {name: _scored_pair(router, strong, weak) for name, router in routers.items()}
    logger.info("%s: scoring %d prompts", benchmark.name, len(benchmark))
    win_prob = {
        name: router.win_prob(
            benchmark.prompts,
            pairs[name].strong,
            pairs[name].weak,
            exclude_own_battles=True,
            cache=cache,
            progress=True,
        ).astype(np.float64)
        for name, router in routers.items()
    }
    win_prob |= outside
    win_prob |= control_win_probs(benchmark, strong=strong, weak=weak, seed=resamples.seed)
    return evaluate(
        win_prob,
        benchmark,
        strong=strong,
        weak=weak,
        resamples=resamples,
        pairs=pairs,
        progress=True,
    )


def _scored_pair(router: Router, strong: str, weak: str) -> ScoredPair:
    """The benchmark's pair where the router knows both names, else the router's own."""
    knows_both = {strong, weak} <= set(router.models)
    router_pair = (strong, weak) if knows_both and not router.has_pair else (router.strong, router.weak)
    return ScoredPair(*((strong, weak) if knows_both else router_pair), *router_pair)


def read_scores(path: str | os.PathLike[str], benchmark: Benchmark) -> Float64[np.ndarray, "prompts"]:
    """Win probabilities of an outside router, in the order of a benchmark's prompts.

    Args:
        path: a table with columns ``prompt`` and ``win_prob`` (in [0, 1]); other prompts in it do not matter.
        benchmark: whose prompts are looked up by their exact text.

    Raises:
        InputError: columns missing, values outside [0, 1], two values for one prompt, or prompts missing.
    """
    table = read_table(path, columns=["prompt", "win_prob"], progress=True)
    values = number_column(table, "win_prob", path)
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise InputError(f"{path}: row {bad[0]}: column win_prob must be in [0, 1], got {values[bad[0]]}")
    known: dict[str, float] = {}
    prompts = text_column(table, "prompt", path).rows()
    for row, (prompt, value) in enumerate(zip(prompts, values.tolist(), strict=True)):
        if known.setdefault(prompt, value) != value:
            raise InputError(f"{path}: row {row}: a second, different win_prob for the prompt {prompt[:60]!r}")
    missing = [prompt for prompt in benchmark.prompts if prompt not in known]
    if missing:
        raise InputError(
            f"{path}: no win_prob for {len(missing)} of the {len(benchmark)} prompts of {benchmark.name}, "
            f"the first {missing[0][:60]!r}"
        )
    return np.asarray([known[prompt] for prompt in benchmark.prompts])


def _load(paths: Sequence[str | os.PathLike[str]], encoder: str | None) -> dict[str, Router]:
    """Routers by the name of their folder; each run's nearest-neighbour control once."""
    runs = _named({Path(path).resolve().name: path for path in paths}, paths)
    loaded = {name: load_router(router_folder(path)) for name, path in runs.items()}
    controls = {
        name: Path(path) / "knn" for name, path in runs.items() if (Path(path) / "knn" / "router.json").exists()
    }
    for name, folder in controls.items():
        is_clear = len(controls) == 1 and "knn" not in runs
        loaded["knn" if is_clear else f"knn of {name}"] = load_router(folder)
    if encoder is None:
        return loaded
    # A router that reads text itself has its encoder with it, and one of an endpoint or of given embeddings has none.
    elsewhere = {name: router for name, router in loaded.items() if router.featurizer.takes_encoder}
    if loaded and not elsewhere:
        raise InputError(
            f"the routers read text themselves or not at all, and take no encoder ({encoder}): leave --encoder out"
        )
    moved = {
        name: dataclasses.replace(router, featurizer=router.featurizer.at(encoder))
        for name, router in elsewhere.items()
    }
    return {**loaded, **moved}


def _named(
    by_name: dict[str, str | os.PathLike[str]], paths: Sequence[str | os.PathLike[str]]
) -> dict[str, str | os.PathLike[str]]:
    """By short names where these tell the paths apart, else by the paths themselves."""
    return by_name if len(by_name) == len(paths) else {os.fspath(path): path for path in paths}


def _require_different(names: Sequence[str], otherwise: str) -> None:
    again = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if again is not None:
        raise InputError(f"{again} {otherwise}")


def _open_benchmark(name: str, data_root: str | os.PathLike[str], strong: str | None, weak: str | None) -> Benchmark:
    # A file of another ending is told which there are.
    if Path(name).suffix in ENDINGS or Path(name).is_file():
        return read_benchmark_table(name, strong=strong, weak=weak, progress=True)
    return load_benchmark(name, data_root)
