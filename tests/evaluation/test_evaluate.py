"""Figures of routers against the metrics themselves, the controls, and the report."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from sklearn.metrics import log_loss

from routerjax import InputError, Router, data, evaluation, metrics, save_router
from routerjax.tables import write_table
from tests.routers import tiny_router


def make_benchmark(num_prompts: int = 300, *, grades: bool = False) -> data.Benchmark:
    rng = np.random.default_rng(0)
    strong, weak = (rng.random(num_prompts) < chance for chance in (0.8, 0.5))
    quality = {"big": strong.astype(float), "small": weak.astype(float)}
    if grades:
        quality = {name: 1 + 9 * values * rng.random(num_prompts) for name, values in quality.items()}
    prompts = tuple(f"what is question {row}" for row in range(num_prompts))
    return data.Benchmark(name="made up", prompts=prompts, quality=quality, strong="big", weak="small")


BENCHMARK = make_benchmark()


def win_probs() -> dict[str, np.ndarray]:
    gain = BENCHMARK.quality["big"] - BENCHMARK.quality["small"]
    noise = np.random.default_rng(1).standard_normal(len(BENCHMARK))
    return {
        "good": 1 / (1 + np.exp(-gain - 0.5 * noise)),
        **evaluation.control_win_probs(BENCHMARK, strong="big", weak="small"),
    }


def test_figures_are_those_of_the_metrics_and_lie_in_their_intervals() -> None:
    found = win_probs()
    result = evaluation.evaluate(found, BENCHMARK, num_samples=200)
    strong, weak = BENCHMARK.quality["big"], BENCHMARK.quality["small"]
    for name, router in result.routers.items():
        curve = metrics.cost_quality_curve(found[name], strong, weak)
        assert router.apgr.value == metrics.apgr(curve)
        assert router.apgr_binned == metrics.apgr_binned(found[name], strong, weak)
        assert router.cpt[0.5].value == metrics.cpt(curve, 0.5)
        for figure in (router.apgr, *router.cpt.values(), *router.cost_saving.values()):
            assert figure.low - 1e-5 <= figure.value <= figure.high + 1e-5
    difference = result.difference["good", "random"]
    assert difference.value == result.routers["good"].apgr.value - result.routers["random"].apgr.value
    assert difference.low > 0
    label = (1 + strong - weak) / 2
    hard = np.concatenate([np.ones(len(label)), np.zeros(len(label))])
    expected = log_loss(hard, np.tile(found["good"], 2), sample_weight=np.concatenate([label, 1 - label]))
    np.testing.assert_allclose(result.routers["good"].log_loss, expected, rtol=1e-6)


def test_paired_intervals_are_narrower_than_unpaired_ones() -> None:
    found = win_probs()
    found["nearly as good"] = np.clip(found["good"] + 1e-3 * np.sin(np.arange(len(BENCHMARK))), 0, 1)
    result = evaluation.evaluate(found, BENCHMARK, num_samples=200)
    paired = result.difference["good", "nearly as good"]
    own = result.routers["good"].apgr
    assert paired.high - paired.low < 0.2 * (own.high - own.low)


def test_controls() -> None:
    controls = evaluation.control_win_probs(BENCHMARK, strong="big", weak="small")
    result = evaluation.evaluate(controls, BENCHMARK, num_samples=500)
    random, constant, oracle = (result.routers[name] for name in ("random", "constant", "oracle"))
    assert random.apgr.low < 0.5 < random.apgr.high
    assert constant.apgr.value == 0.5
    np.testing.assert_allclose([constant.apgr.low, constant.apgr.high], 0.5, atol=1e-6)
    assert len(constant.curve.strong_share) == 2
    # The oracle sends the gains first, the losses last: no order has a larger APGR.
    gain = np.sort(BENCHMARK.quality["big"] - BENCHMARK.quality["small"])[::-1]
    best = np.concatenate([[0], np.cumsum(gain)]) / gain.sum()
    assert oracle.apgr.value == pytest.approx(np.trapezoid(best, dx=1 / len(gain)), abs=2e-3)
    assert oracle.of_oracle == 1
    assert oracle.log_loss == pytest.approx(np.log(2) * np.mean(gain == 0), abs=1e-3)


def test_an_oracle_tells_equal_prompts_apart() -> None:
    benchmark = data.Benchmark(
        name="b", prompts=("same", "same"), quality={"big": [1.0, 0.0], "small": [0.0, 0.0]}, strong="big", weak="small"
    )
    controls = evaluation.control_win_probs(benchmark, strong="big", weak="small")
    assert controls["oracle"][0] > controls["oracle"][1]
    assert controls["random"][0] == controls["random"][1]


def test_grades_are_compared_not_read_as_chances() -> None:
    benchmark = make_benchmark(grades=True)
    label = evaluation.preference_label(benchmark, strong="big", weak="small")
    np.testing.assert_array_equal(label, (1 + np.sign(benchmark.quality["big"] - benchmark.quality["small"])) / 2)
    oracle = evaluation.control_win_probs(benchmark, strong="big", weak="small")["oracle"]
    gain = benchmark.quality["big"] - benchmark.quality["small"]
    np.testing.assert_allclose(oracle, 1 / (1 + np.exp(-gain)), rtol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"good: expected 300 win probabilities for made up, got \(3,\)"):
        evaluation.evaluate({"good": np.ones(3)}, BENCHMARK)
    with pytest.raises(InputError, match=r"'bigg' is not one of the 2 models \(did you mean 'big'\?\)"):
        evaluation.evaluate(win_probs(), BENCHMARK, strong="bigg")
    nameless = data.Benchmark(name="n", prompts=BENCHMARK.prompts, quality=BENCHMARK.quality)
    with pytest.raises(InputError, match="has no usual pair of models"):
        evaluation.evaluate(win_probs(), nameless)


def printed(result: evaluation.BenchmarkResult, *, width: int, is_terminal: bool = True) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=is_terminal)
    evaluation.print_table(result, console)
    return console.export_text()


LONG_NAME = "a-router of a long [bold]name, it is true"


@pytest.fixture(scope="module")
def long_result() -> evaluation.BenchmarkResult:
    return evaluation.evaluate({**win_probs(), LONG_NAME: win_probs()["good"]}, BENCHMARK, num_samples=100)


@pytest.mark.parametrize(("width", "longest"), [(60, 76), (80, 80), (100, 100), (200, 109)])
def test_a_figure_and_its_interval_stay_on_one_line(
    long_result: evaluation.BenchmarkResult, width: int, longest: int
) -> None:
    name, result = LONG_NAME, long_result
    piped = printed(result, width=width, is_terminal=False)
    assert sum(name in line for line in piped.splitlines()) == 1
    text = printed(result, width=width)
    for router in result.routers.values():
        figure = evaluation.report.number(router.apgr)
        assert figure in text
        assert figure in piped
    rows = [line for line in text.splitlines() if "[" in line and "]" in line and "%" in line]
    assert len(rows) == len(result.routers)
    assert all(line.count("[") - line.count("[bold") == 3 and line.rstrip().endswith("]") for line in rows)
    assert max(map(len, text.splitlines())) <= longest
    # Names are whole but for where they are broken, and their brackets are no markup.
    assert name.replace(" ", "") in "".join(line[: longest - 68] for line in text.splitlines()).replace(" ", "")


def test_a_title_is_broken_on_a_terminal_alone(long_result: evaluation.BenchmarkResult) -> None:
    long = dataclasses.replace(long_result, strong="strong " * 30)
    assert max(map(len, printed(long, width=80).splitlines())) <= 80
    assert "strong " * 30 in printed(long, width=80, is_terminal=False)


def test_reports_say_the_same() -> None:
    result = evaluation.evaluate(win_probs(), BENCHMARK, num_samples=100)
    markdown = evaluation.markdown_table([result])
    text = printed(result, width=80)
    figure = f"{result.routers['good'].apgr.value:.3f}"
    assert figure in markdown
    assert figure in text
    assert all(len(line) <= 80 for line in text.splitlines())
    described = json.loads(json.dumps(evaluation.results_json([result]), allow_nan=False))
    assert described["benchmarks"][0]["routers"]["good"]["apgr"]["value"] == result.routers["good"].apgr.value
    assert len(described["benchmarks"][0]["difference"]) == 4 * 3


def benchmark_file(folder: Path) -> str:
    path = folder / "made_up.parquet"
    if not path.exists():
        data.write_benchmark_table(BENCHMARK, path)
    return str(path)


def test_router_folders_and_score_files_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTERJAX_CACHE", str(tmp_path / "cache"))
    router = tiny_router(tmp_path)
    save_router(router, tmp_path / "run" / "router")
    save_router(router, tmp_path / "run" / "knn")  # whatever is there is the control
    own = router.win_prob(BENCHMARK.prompts)
    write_table(pa.table({"prompt": BENCHMARK.prompts, "win_prob": own}), str(tmp_path / "outside.csv"))
    results = evaluation.evaluate_routers(
        [tmp_path / "run"],
        benchmarks=[benchmark_file(tmp_path)],
        score_files=[tmp_path / "outside.csv"],
        strong="big",
        weak="small",
        num_samples=50,
        output=tmp_path / "results",
    )
    routers = results[0].routers
    assert set(routers) == {"run", "knn", "outside", "random", "constant", "oracle"}
    assert routers["run"].apgr == routers["outside"].apgr
    assert (tmp_path / "results" / "curves.png").read_bytes().startswith(b"\x89PNG")
    described = json.loads((tmp_path / "results" / "results.json").read_text())
    assert described["router_pairs"]["run"] == {"strong": "big", "weak": "small"}
    assert re.search(r"\| run \| 0\.\d{3} \[", (tmp_path / "results" / "results.md").read_text())
    smaller = evaluation.evaluate_routers(
        [tmp_path / "run"],
        benchmarks=[benchmark_file(tmp_path)],
        strong="big",
        weak="small",
        exclude_smallest=100,
        num_samples=10,
        output=tmp_path / "smaller",
    )
    assert smaller[0].num_prompts == 200


def test_what_is_refused_is_refused_before_any_prompt_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores_nothing(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("a prompt was scored")

    monkeypatch.setattr(Router, "win_prob", scores_nothing)
    save_router(tiny_router(tmp_path), tmp_path / "router")
    other, scores = tmp_path / "other.parquet", tmp_path / "outside.csv"
    equal = dataclasses.replace(BENCHMARK, quality={name: BENCHMARK.quality["big"] for name in BENCHMARK.quality})
    data.write_benchmark_table(equal, other)
    write_table(pa.table({"prompt": ["x"], "win_prob": [0.5]}), str(scores))
    pair = {"strong": "big", "weak": "small"}
    # The first benchmark is sound: it waits for the second one.
    both = [benchmark_file(tmp_path), str(other)]
    for arguments, message in (
        ({"benchmarks": both, **pair}, "the same mean quality"),
        ({"benchmarks": both[:1]}, "no usual pair of models"),
        ({"benchmarks": both[:1], "strong": "big"}, "no usual pair of models"),
        ({"benchmarks": both[:1], "score_files": [scores], **pair}, "no win_prob for 300 of the 300 prompts"),
        ({"benchmarks": both[:1], "score_files": [tmp_path / "no.csv"], **pair}, "no file .*no.csv"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation.evaluate_routers([tmp_path / "router"], **arguments, output=tmp_path / "results")
    with pytest.raises(AssertionError, match="a prompt was scored"):
        evaluation.evaluate_routers([tmp_path / "router"], benchmarks=both[:1], **pair, output=tmp_path / "results")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": ["x"], "win_prob": [0.5]}, "no win_prob for 300 of the 300 prompts of made up"),
        ({"prompt": ["x"], "win_prob": [1.5]}, r"row 0: column win_prob must be in \[0, 1\], got 1.5"),
        ({"prompt": ["x", "x"], "win_prob": [0.5, 0.6]}, "row 1: a second, different win_prob for the prompt 'x'"),
        ({"prompt": ["x"], "winprob": [0.5]}, r"lacks the column 'win_prob' \(did you mean 'winprob'\?\)"),
        ({"prompt": ["x"], "win_prob": ["high"]}, "column win_prob must be numbers"),
    ],
)
def test_scores_that_cannot_be_used(tmp_path: Path, rows: dict, message: str) -> None:
    path = tmp_path / "scores.parquet"
    write_table(pa.table(rows), str(path))
    with pytest.raises(InputError, match=message):
        evaluation.read_scores(path, BENCHMARK)


def test_nothing_is_written_when_something_is_wrong(tmp_path: Path) -> None:
    arguments = {"benchmarks": [benchmark_file(tmp_path)], "strong": "big", "weak": "small"}
    output = tmp_path / "results"
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluation.evaluate_routers([], **arguments, output=output)
    with pytest.raises(InputError, match="is not a router folder"):
        evaluation.evaluate_routers([tmp_path], **arguments, output=output)
    with pytest.raises(InputError, match="must be positive, got 0"):
        evaluation.evaluate_routers([tmp_path], **arguments, num_samples=0, output=output)
    assert not output.exists()
    output.mkdir()
    (output / "mine").touch()
    with pytest.raises(InputError, match="exists already"):
        evaluation.evaluate_routers([tmp_path], **arguments, output=output)
