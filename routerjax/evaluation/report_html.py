"""Results as one page that needs nothing else: curves, tables, reliability, where routers err, and what they cost."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
from jaxtyping import Float64

from routerjax.data import ROUTELLM_STRONG, ROUTELLM_WEAK
from routerjax.evaluation.controls import CONTROLS
from routerjax.evaluation.evaluate import BenchmarkResult, RouterResult
from routerjax.evaluation.plots import require_plots
from routerjax.evaluation.report import COLUMNS, figure_rows, notes, number
from routerjax.evaluation.slices import Slice
from routerjax.metrics import Figure

# Of a curve as it is drawn.
MOST_POINTS = 200
# Colours in report.css; from the seventh router on they come again, dashed.
NUM_COLOURS = 6
WORST = 10
# An interval over fewer prompts than this says little about domains of its kind.
FEW_PROMPTS = 100
# What RouteLLM assumes of a request, and of its own pair of models in dollars per million tokens (arXiv 2406.18665,
# section 5.3).
TRAFFIC = {"requests": 10_000, "input_tokens": 95, "output_tokens": 264}
ROUTELLM_PAIR = (ROUTELLM_STRONG, ROUTELLM_WEAK)
ROUTELLM_PRICES = {"strong_input": 10.0, "strong_output": 30.0, "weak_input": 0.24, "weak_output": 0.24}
INTERVALS = {
    "high": "better than the column by more than chance",
    "low": "worse by more than chance",
    "open": "the interval holds zero",
}


@dataclass(frozen=True)
class Axes:
    """A plot area in the units of its SVG; horizontally a share from 0 to 1.

    Attributes:
        width, height: of the whole drawing.
        left, top, right, bottom: margins around the plot area.
        low, high: ends of the vertical axis.
        ticks: of the vertical axis.
    """

    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int
    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, share: float) -> float:
        """Horizontal place of a share."""
        return round(self.left + share * (self.width - self.left - self.right), 2)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.height - self.bottom - part * (self.height - self.top - self.bottom), 2)

    @property
    def transform(self) -> str:
        """SVG transform from data to drawing, so that paths hold the data themselves."""
        across = self.x(1) - self.x(0)
        up = (self.y(self.high) - self.y(self.low)) / (self.high - self.low)
        return f"matrix({across:.9g} 0 0 {up:.9g} {self.x(0):.9g} {self.y(0):.9g})"


@dataclass(frozen=True)
class Line:
    """A router's curve and band as SVG paths in data units."""

    name: str
    label: str
    curve: str
    band: str


def html_report(results: Sequence[BenchmarkResult]) -> str:
    """Render the results as one .html page: no network, no prompts, all names escaped.

    Args:
        results: of :func:`routerjax.evaluation.evaluate`, at least one.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_plots()
    routers = list(dict.fromkeys(name for result in results for name in result.routers))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"zip": zip, "notes": notes}
    environment.filters |= {"number": number, "verdict": _verdict}
    folder = importlib.resources.files("routerjax.evaluation")
    return environment.from_string((folder / "report.html.jinja").read_text(encoding="utf-8")).render(
        results=results,
        version=importlib.metadata.version("routerjax"),
        styles=_styles(routers),
        style_sheet=(folder / "report.css").read_text(encoding="utf-8"),
        script=(folder / "report.js").read_text(encoding="utf-8"),
        controls=CONTROLS,
        columns=list(COLUMNS),
        rows=lambda result: figure_rows(result, list(COLUMNS)),
        curve_axes=_curve_axes,
        lines=lambda result: [_line(result, name, router) for name, router in result.routers.items()],
        reliability_axes=Axes(260, 260, 44, 10, 12, 40, 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        worst_first=_worst_first,
        worst=WORST,
        few_prompts=FEW_PROMPTS,
        intervals=INTERVALS,
        traffic=TRAFFIC,
        prices=_prices(results),
        calculator=[_calculator(result) for result in results],
    )


def _styles(routers: Sequence[str]) -> dict[str, str]:
    """CSS classes by router: the same on every chart."""
    scored = (name for name in routers if name not in CONTROLS)
    styles = {
        name: f"router-{place % NUM_COLOURS}" + (" again" if place >= NUM_COLOURS else "")
        for place, name in enumerate(scored)
    }
    return styles | {name: f"control {name}" for name in CONTROLS}


def _curve_axes(result: BenchmarkResult) -> Axes:
    from matplotlib.ticker import MaxNLocator

    quality = [_band_quality(result, edge) for router in result.routers.values() for edge in _edges(router)]
    quality += [router.curve.quality for router in result.routers.values()]
    low, high = (float(end(np.concatenate(quality))) for end in (np.min, np.max))
    ticks = [float(tick) for tick in MaxNLocator(nbins=6).tick_values(low, high)]
    return Axes(820, 420, 52, 12, 56, 50, low, high, tuple(tick for tick in ticks if low <= tick <= high))


def _edges(router: RouterResult) -> tuple[Float64[np.ndarray, "shares"], Float64[np.ndarray, "shares"]]:
    return router.band.low, router.band.high


def _band_quality(result: BenchmarkResult, pgr: Float64[np.ndarray, "shares"]) -> Float64[np.ndarray, "shares"]:
    return result.quality_weak + pgr * (result.quality_strong - result.quality_weak)


def _line(result: BenchmarkResult, name: str, router: RouterResult) -> Line:
    curve = router.curve
    points = np.unique(np.linspace(0, len(curve.strong_share) - 1, MOST_POINTS).round().astype(int))
    low, high = (_band_quality(result, edge) for edge in _edges(router))
    share = router.band.strong_share
    band = _path(np.append(share, share[::-1]), np.append(low, high[::-1])) + "Z"
    return Line(
        name=name,
        label=f"{name}: APGR {number(router.apgr)}",
        curve=_path(curve.strong_share[points], curve.quality[points]),
        band=band,
    )


def _path(share: Float64[np.ndarray, "points"], value: Float64[np.ndarray, "points"]) -> str:
    return "M" + "L".join(f"{x:.6g},{y:.6g}" for x, y in zip(share.tolist(), value.tolist(), strict=True))


def _verdict(difference: Figure, *, is_reversed: bool = False) -> str:
    """Class of a difference: ``high`` where the row is better; of one in APGR that is lower if the gap is negative."""
    low, high = (-difference.high, -difference.low) if is_reversed else (difference.low, difference.high)
    return "high" if low > 0 else "low" if high < 0 else "open"


def _worst_first(result: BenchmarkResult, name: str) -> list[tuple[str, list[Slice]]]:
    """By kind, the slices: domains by the router's regret, lengths in their order."""
    grouped = itertools.groupby(result.slices, key=lambda part: part.kind)
    return [
        (kind, sorted(parts, key=lambda part: -(part.routers[name].regret.value or 0.0) if kind == "domain" else 0))
        for kind, parts in grouped
    ]


def _prices(results: Sequence[BenchmarkResult]) -> Mapping[str, float]:
    """Default prices of the cost calculator: RouteLLM's for its own pair, none for any other."""
    is_known = {(result.strong, result.weak) for result in results} == {ROUTELLM_PAIR}
    return ROUTELLM_PRICES if is_known else {}


def _calculator(result: BenchmarkResult) -> dict[str, object]:
    """Data of report.js: a router's quality and threshold by whole percent of strong calls, 0 to 100.

    Between two thresholds quality is linear, a random split of equal prompts; the threshold is the score that is split.
    The first one, infinity, is null.
    """
    routers = []
    for name, router in result.routers.items():
        curve, share = router.curve, np.arange(101) / 100
        quality = np.interp(share, curve.strong_share, curve.quality)
        threshold = curve.threshold[np.searchsorted(curve.strong_share, share)][1:]
        routers.append({"name": name, "quality": _short(quality), "threshold": [None, *_short(threshold)]})
    ends = {"strong": result.quality_strong, "weak": result.quality_weak}
    return {"benchmark": result.benchmark, **ends, "routers": routers}


def _short(values: Float64[np.ndarray, "points"]) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
