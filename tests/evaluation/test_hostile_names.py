"""Names that would move a cursor, turn text round, or start a line, a cell, a link or an element: shown as they are."""

import dataclasses
import functools
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from routerjax import data, evaluation, metrics

pytestmark = pytest.mark.xdist_group("report")

ATTACKS = (
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe\u2066",
    "first\n| forged | 1.000 [1.000, 1.000] |\r\nlast",
    "<img src=x onerror=alert(1)>\"'><script>alert(1)</script><!--",
    "[text](javascript:alert(1)) ![x](http://example.com/x.png) <http://example.com>",
    "a|b**c**`d`~~e~~ _f_ # g\\|h",
    "\x9b31m\u2028\u2029\x85\x0b\x0c",
)


@functools.cache
def plain_result() -> evaluation.BenchmarkResult:
    rng = np.random.default_rng(0)
    strong, weak = (rng.random(60) < chance for chance in (0.4, 0.6))  # so that notes are written
    benchmark = data.Benchmark(
        name="plain",
        prompts=tuple(f"prompt {row}" for row in range(60)),
        quality={"big": strong.astype(float), "small": weak.astype(float)},
        strong="big",
        weak="small",
        domain=("one", "two") * 30,
    )
    win_prob = {"mine": rng.random(60), **evaluation.control_win_probs(benchmark, strong="big", weak="small")}
    return evaluation.evaluate(win_prob, benchmark, resamples=metrics.Resamples(100))


def named(name: str) -> evaluation.BenchmarkResult:
    """The result with this name for everything that others name."""
    result = plain_result()

    def renamed(known: dict) -> dict:
        return {name if key == "mine" else key: value for key, value in known.items()}

    difference = {tuple(name if one == "mine" else one for one in key): v for key, v in result.difference.items()}
    slices = tuple(
        dataclasses.replace(part, name=name if part.kind == "domain" else part.name, routers=renamed(part.routers))
        for part in result.slices
    )
    pairs = {"benchmark": name, "strong": name, "weak": name}
    return dataclasses.replace(result, **pairs, routers=renamed(result.routers), difference=difference, slices=slices)


class Elements(HTMLParser):
    """Every tag with the names of its attributes, where links lead, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.targets: list[str | None] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.targets += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def terminal(result: evaluation.BenchmarkResult) -> str:
    stream = io.StringIO()
    evaluation.print_table(result, Console(file=stream, width=100))
    return stream.getvalue()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_terminal_shows_escapes(name: str) -> None:
    shown = terminal(named(name))
    assert all(character.isprintable() for line in shown.split("\n") for character in line)
    assert len(shown.split("\n")) == len(terminal(named("mine")).split("\n"))


@pytest.mark.parametrize("name", ATTACKS)
def test_markdown_shows_the_name_and_nothing_else(name: str) -> None:
    # Raw HTML is let through, as GitHub's renderer and others do.
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
    hostile, plain = (Elements(render(evaluation.markdown_table([named(text)]))) for text in (name, "mine"))
    assert hostile.tags == plain.tags
    assert evaluation.report.printable(name) in hostile.text


@pytest.mark.parametrize("name", ATTACKS)
def test_the_page_has_the_elements_of_any_other(name: str) -> None:
    hostile, plain = (Elements(evaluation.html_report([named(text)])) for text in (name, "mine"))
    assert hostile.tags == plain.tags
    assert [target for target in hostile.targets if target and not target.startswith(("#", "data:"))] == []
