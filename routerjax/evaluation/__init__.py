"""Routers on benchmarks: curves, figures with intervals, and the controls that every router is compared with."""

from routerjax.evaluation.compare import evaluate_routers, read_scores
from routerjax.evaluation.controls import control_win_probs
from routerjax.evaluation.evaluate import (
    Band,
    BenchmarkResult,
    RouterResult,
    ScoredPair,
    evaluate,
    preference_label,
)
from routerjax.evaluation.plots import plot_curves, require_plots
from routerjax.evaluation.report import markdown_table, print_table, results_json
from routerjax.evaluation.report_html import html_report
from routerjax.evaluation.slices import Slice, SliceFigures
from routerjax.metrics import Figure

__all__ = [
    "Band",
    "BenchmarkResult",
    "Figure",
    "RouterResult",
    "ScoredPair",
    "Slice",
    "SliceFigures",
    "control_win_probs",
    "evaluate",
    "evaluate_routers",
    "html_report",
    "markdown_table",
    "plot_curves",
    "preference_label",
    "print_table",
    "read_scores",
    "require_plots",
    "results_json",
]
