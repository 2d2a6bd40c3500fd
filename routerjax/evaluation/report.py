"""Results for people and for programs: a table on the terminal, the same in Markdown, and JSON."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from routerjax.display import markdown, printable
from routerjax.evaluation.evaluate import TARGETS, BenchmarkResult, RouterResult, ScoredPair
from routerjax.metrics import Figure

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FEW_PROMPTS = 20
"""Resamples of fewer prompts are too much alike for their spread to be that of the figures."""

Cell = Callable[[BenchmarkResult, str, RouterResult], str]


def number(figure: Figure) -> str:
    """Format a figure and its interval as they stand in every table."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _share(figure: Figure) -> str:
    def percent(share: float) -> str:
        return "never" if math.isinf(share) else f"{100 * share:.1f}"

    value = "not reached" if figure.value is None else percent(figure.value)
    return f"{value} [{percent(figure.low)}, {percent(figure.high)}]"


def _times(figure: Figure) -> str:
    value = "not reached" if figure.value is None else f"{figure.value:.2f}"
    return f"{value} [{figure.low:.2f}, {figure.high:.2f}]"


def _against_random(result: BenchmarkResult, name: str, _: RouterResult) -> str:
    return number(result.minus(name, "random")) if name != "random" and "random" in result.routers else ""


def _of_oracle(_: BenchmarkResult, name: str, router: RouterResult) -> str:
    if router.of_oracle is None:
        return ""
    value, low, high = (
        "" if share is None or math.isnan(share) else str(round(100 * share))
        for share in (router.of_oracle.value, router.of_oracle.low, router.of_oracle.high)
    )
    return value if name == "oracle" else f"{value} [{low}, {high}]"


COLUMNS: dict[str, Cell] = {
    "router": lambda _, name, __: name,
    "APGR": lambda _, __, router: number(router.apgr),
    "% of oracle": _of_oracle,
    "CPT(50 %)": lambda _, __, router: _share(router.cpt[TARGETS[0]]),
    "CPT(80 %)": lambda _, __, router: _share(router.cpt[TARGETS[1]]),
    "APGR - random": _against_random,
    "APGR, 10 bins": lambda _, __, router: number(router.apgr_binned),
    "saving at 50 %": lambda _, __, router: _times(router.cost_saving[TARGETS[0]]),
    "saving at 80 %": lambda _, __, router: _times(router.cost_saving[TARGETS[1]]),
    "log-loss": lambda _, __, router: number(router.log_loss),
    "Brier": lambda _, __, router: number(router.brier),
    "calibration error": lambda _, __, router: number(router.calibration_error),
}
# What fits into 80 columns, beside names of ten letters.
TERMINAL_COLUMNS = ("router", "APGR", "% of oracle", "CPT(50 %)", "CPT(80 %)")
# Names are broken to make room for figures, but not into pieces shorter than this: the longest of the controls.
SHORTEST_NAME = len("constant")
MARKDOWN_COLUMNS = (*TERMINAL_COLUMNS, "APGR - random", "APGR, 10 bins", "log-loss")


def figure_rows(result: BenchmarkResult, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield a row for each router, the best on top: a cell for each of the :data:`COLUMNS` that are named.

    The best has the largest APGR; or the smallest, where the strong model is the worse one and every call to it costs
    quality.
    """
    sign = math.copysign(1.0, result.quality_strong - result.quality_weak)
    for name, router in sorted(result.routers.items(), key=lambda item: -sign * (item[1].apgr.value or 0.0)):
        yield [COLUMNS[column](result, name, router) for column in columns]


def _headline(result: BenchmarkResult) -> str:
    return (
        f"{result.benchmark}: {result.num_prompts} prompts; {result.strong} {result.quality_strong:.4f}, "
        f"{result.weak} {result.quality_weak:.4f}"
    )


def notes(result: BenchmarkResult) -> list[str]:
    """Say in a sentence each what is unusual about the pairs of models, or the number of prompts."""
    strong, weak, sentences = result.strong, result.weak, []
    if result.quality_strong < result.quality_weak:
        sentences.append(
            f"{strong}, named as the strong model, is worse than {weak} here (swapped?): PGR is then a share of what "
            "is lost, and the best router has the smallest APGR."
        )
    if result.gap_not_positive > 0:
        sentences.append(
            f"In {100 * result.gap_not_positive:.3g} % of the resamples {strong} is not better than {weak}: intervals "
            "of APGR, CPT and what follows from them mean little."
        )
    if result.num_prompts < FEW_PROMPTS:
        sentences.append("So few prompts say little: the intervals are narrower than what is not known.")
    by_pair: dict[ScoredPair, list[str]] = {}
    for name, pair in result.pairs.items():
        by_pair.setdefault(pair, []).append(name)
    for pair, names in by_pair.items():
        is_one = len(names) == 1
        scored, its = f"{', '.join(names)} {'is' if is_one else 'are'} scored on", "its" if is_one else "their"
        if (pair.strong, pair.weak) != (strong, weak):
            why = f"{'it does' if is_one else 'they do'} not know both models of this benchmark"
            sentences.append(f"{scored} {its} own pair, {pair.strong} or {pair.weak}: {why}.")
        elif (pair.strong, pair.weak) != (pair.own_strong, pair.own_weak):
            calibrated_for = f"{its} own pair, {pair.own_strong} or {pair.own_weak}"
            sentences.append(f"{scored} this benchmark's pair; a calibration of {calibrated_for}, is not used.")
    return sentences


def print_table(result: BenchmarkResult, console: Console) -> None:
    """Print figures with their 95 % intervals, best router first.

    A figure and its interval stay on one line. On a terminal that is too narrow names are broken; where that does not
    help, lines are longer than the terminal is wide. What goes to a file or a pipe is never broken.
    """
    table = _terminal_table(result, breaks_title=console.is_terminal)
    unlimited = console.options.update(max_width=sys.maxsize)
    if console.is_terminal:
        too_much = max(0, console.measure(table, options=unlimited).maximum - console.width)
        name_width = max(len(printable(name)) for name in result.routers)
        table.columns[0].width = max(min(name_width, SHORTEST_NAME), name_width - too_much)
    table.width = console.measure(table, options=unlimited).maximum
    console.print(table, "", crop=False, soft_wrap=False)
    for note in notes(result):
        console.print(Text(printable(f"Note: {note}")), soft_wrap=not console.is_terminal)
    if notes(result):
        console.print()


def _terminal_table(result: BenchmarkResult, *, breaks_title: bool) -> Table:
    title = Text(printable(_headline(result)), style="bold", overflow="fold" if breaks_title else "ignore")
    table = Table(
        title=title,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    rows = [[printable(cell) for cell in row] for row in figure_rows(result, TERMINAL_COLUMNS)]
    for name, *cells in zip(TERMINAL_COLUMNS, *rows, strict=True):
        # A title that is wider than its figures takes two lines.
        header = name if max(map(len, cells)) >= len(name) else name.replace(" ", "\n")
        is_name = name == "router"
        table.add_column(header, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text, since brackets in a plain cell would be markup
    return table


def markdown_table(results: Sequence[BenchmarkResult]) -> str:
    """Format the figures of every benchmark as tables in Markdown."""
    lines = []
    for result in results:
        lines += [f"**{markdown(_headline(result))}**", ""]
        lines += ["| " + " | ".join(MARKDOWN_COLUMNS) + " |", "|" + "---|" * len(MARKDOWN_COLUMNS)]
        lines += [
            f"| {markdown(name)} | {' | '.join(cells)} |" for name, *cells in figure_rows(result, MARKDOWN_COLUMNS)
        ]
        lines.append("")
        lines += [line for note in notes(result) for line in (f"Note: {markdown(note)}", "")]
    lines.append(
        f"Brackets: 95 % bootstrap intervals over prompts ({results[0].num_samples} resamples, the same for all "
        "routers). CPT: % of calls to the strong model that recover 50 % or 80 % of the quality gap. Random: one draw."
    )
    return "\n".join(lines) + "\n"


def results_json(results: Sequence[BenchmarkResult]) -> dict[str, object]:
    """Return everything but the curves as JSON without infinities: what is not reached is null."""
    versions = {name: importlib.metadata.version(name) for name in ("routerjax", "jax", "numpy")}
    return {"versions": versions, "benchmarks": [_benchmark_json(result) for result in results]}


def _benchmark_json(result: BenchmarkResult) -> dict[str, object]:
    difference = [
        {"router": one, "minus": other, "apgr": _plain(figure)} for (one, other), figure in result.difference.items()
    ]
    return {**_fields(result, without={"difference"}), "difference": difference, "notes": notes(result)}


def _fields(value: DataclassInstance, *, without: AbstractSet[str]) -> dict[str, object]:
    names = [field.name for field in dataclasses.fields(value) if field.name not in without]
    return {name: _plain(getattr(value, name)) for name in names}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, without={"curve", "band"})
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | np.ndarray):
        return [_plain(part) for part in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
