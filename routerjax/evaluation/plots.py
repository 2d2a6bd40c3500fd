"""Cost-quality curves as a picture."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from routerjax.atomic import atomic_file
from routerjax.display import printable
from routerjax.errors import require_extra
from routerjax.evaluation.evaluate import BenchmarkResult

logger = logging.getLogger(__name__)

PANEL_INCHES = (5.2, 4.2)
# A curve of 14,037 prompts has 14,037 points; the picture shows no more than this many.
MOST_POINTS = 1000
# Beginning of matplotlib's warning about a character.
MISSING = "Glyph"
CONTROL_STYLES = {"random": ":", "constant": "-.", "oracle": "--"}


def require_plots() -> None:
    """Refuse to draw without matplotlib, before the work.

    Raises:
        InputError: it is not installed.
    """
    require_extra("report", "matplotlib", "the report of an evaluation")


def plot_curves(results: Sequence[BenchmarkResult], path: Path) -> None:
    """Quality over the share of strong calls, a panel for each benchmark, to a .png file.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL_INCHES[0] * len(results), PANEL_INCHES[1]), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        for name, router in result.routers.items():
            curve = router.curve
            points = np.unique(np.linspace(0, len(curve.strong_share) - 1, MOST_POINTS).round().astype(int))
            axes.plot(
                100 * curve.strong_share[points],
                curve.quality[points],
                label=f"{_plain(name)} (APGR {router.apgr.value:.3f})",
                linestyle=CONTROL_STYLES.get(name, "-"),
                color="0.4" if name in CONTROL_STYLES else None,
                linewidth=1.2 if name in CONTROL_STYLES else 2.0,
            )
        axes.set_title(f"{_plain(result.benchmark)}: {result.num_prompts} prompts")
        axes.set_xlabel(f"calls to {_plain(result.strong)} (%)")
        axes.set_ylabel("mean quality")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    with atomic_file(path) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=MISSING)
        figure.savefig(temporary, format="png", dpi=150)
    if any(str(warning.message).startswith(MISSING) for warning in caught):
        logger.warning("%s shows boxes for characters of names that its font lacks; report.html shows them", path.name)


def _plain(name: str) -> str:
    """The name as it is: a dollar sign would start a formula."""
    return printable(name).replace("$", r"\$")
