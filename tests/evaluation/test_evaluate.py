"""Figures of routers against the metrics themselves, the controls, and the report."""

import dataclasses
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import log_loss

from routerjax import InputError, data, evaluation, features, metrics
from routerjax.metrics import Resamples
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
    win_prob = win_probs()
    result = evaluation.evaluate(win_prob, BENCHMARK, resamples=Resamples(200))
    strong, weak = BENCHMARK.quality["big"], BENCHMARK.quality["small"]
    for name, router in result.routers.items():
        curve = metrics.cost_quality_curve(win_prob[name], strong, weak)
        assert router.apgr.value == metrics.apgr(curve)
        assert router.apgr_binned.value == metrics.apgr_binned(win_prob[name], strong, weak)
        assert router.cpt[0.5].value == metrics.cpt(curve, 0.5)
        calibration = router.log_loss, router.brier, router.calibration_error
        capped = router.apgr, router.apgr_binned, router.of_oracle, *router.cpt.values(), *router.cost_saving.values()
        for figure in (*capped, *calibration[:2]):
            assert figure.low - 1e-5 <= figure.value <= figure.high + 1e-5
    difference = result.difference["good", "random"]
    assert difference.value == result.routers["good"].apgr.value - result.routers["random"].apgr.value
    assert difference.low > 0
    assert result.minus("good", "random") == difference
    assert result.minus("random", "good") == evaluation.Figure(-difference.value, -difference.high, -difference.low)
    label = (1 + strong - weak) / 2
    hard = np.concatenate([np.ones(len(label)), np.zeros(len(label))])
    expected = log_loss(hard, np.tile(win_prob["good"], 2), sample_weight=np.concatenate([label, 1 - label]))
    np.testing.assert_allclose(result.routers["good"].log_loss.value, expected, rtol=1e-6)


def test_every_interval_is_that_of_the_metric_on_the_same_resamples() -> None:
    win_prob, num_samples = win_probs(), 60
    result = evaluation.evaluate(win_prob, BENCHMARK, resamples=Resamples(num_samples, seed=3))
    columns = {name: BENCHMARK.quality[name] for name in ("big", "small")}
    columns["label"] = evaluation.preference_label(BENCHMARK, strong="big", weak="small")
    drawn = [
        np.repeat(np.arange(300), counts.astype(int)) for counts in metrics.Resamples(num_samples, seed=3).counts(300)
    ]
    gain = columns["big"] - columns["small"]
    assert result.gap_not_positive == np.mean([gain[rows].sum() <= 0 for rows in drawn])

    def sample(metric: Callable, *names: str, router: str = "good") -> np.ndarray:
        return np.array([metric(win_prob[router][rows], *(columns[name][rows] for name in names)) for rows in drawn])

    def apgr(*arrays: np.ndarray) -> float:
        return metrics.apgr(metrics.cost_quality_curve(*arrays))

    pair = "big", "small"
    good, oracle = (sample(apgr, *pair, router=router) for router in ("good", "oracle"))
    router = result.routers["good"]
    for figure, samples in (
        (router.apgr, good),
        (router.apgr_binned, sample(metrics.apgr_binned, *pair)),
        (router.of_oracle, (good - 0.5) / (oracle - 0.5)),
        (router.log_loss, sample(metrics.log_loss, "label")),
        (router.brier, sample(metrics.brier, "label")),
        (router.calibration_error, sample(metrics.expected_calibration_error, "label")),
    ):
        np.testing.assert_allclose([figure.low, figure.high], metrics.percentile_interval(samples), atol=1e-5)


def test_what_takes_over_two_seconds_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*, seconds_a_look: int, progress: bool = True) -> str:
        monkeypatch.setattr("tqdm.std.time", itertools.count(step=seconds_a_look).__next__)
        evaluation.evaluate(win_probs(), BENCHMARK, resamples=Resamples(200), progress=progress)
        rows = np.ones((3000, router.featurizer.width), np.float32)
        router.win_prob(features.Embeddings(rows, router.featurizer.fingerprint), progress=progress)
        return capsys.readouterr().err

    router = tiny_router(tmp_path)
    slow = shown(seconds_a_look=3)
    assert slow.count("resample/s]\n") == 3  # the curves, the means, the slices by length
    assert slow.count("prompt/s]\n") == 1
    assert shown(seconds_a_look=0) == ""
    assert shown(seconds_a_look=3, progress=False) == ""


def test_a_strong_model_that_is_worse_is_said_in_every_report() -> None:
    swapped = {"strong": "small", "weak": "big"}
    win_prob = {**win_probs(), **evaluation.control_win_probs(BENCHMARK, **swapped)}
    result = evaluation.evaluate(win_prob, BENCHMARK, **swapped, resamples=Resamples(100))
    assert result.gap_not_positive == 1
    described = evaluation.results_json([result])["benchmarks"][0]
    assert described["gap_not_positive"] == 1
    worse, resamples = described["notes"]
    assert worse.startswith("small, named as the strong model, is worse than big here (swapped?)")
    assert resamples.startswith("In 100 % of the resamples small is not better than big")
    reports = [printed(result, width=80), evaluation.markdown_table([result]), evaluation.html_report([result])]
    for report in reports:
        assert all(note in " ".join(report.split()) for note in (worse, resamples))
    # The best quality stays on top, and the share of the way to it does not depend on which model is called strong.
    rows = [line.split()[0] for line in reports[0].splitlines() if line.count("[") >= 3]
    assert (rows[0], rows[-1]) == ("oracle", "good")
    straight = evaluation.evaluate(win_probs(), BENCHMARK, resamples=Resamples(100))
    assert straight.gap_not_positive == 0
    assert evaluation.report.notes(straight) == []
    mirrored = {name: 1 - values for name, values in win_probs().items()}
    mirrored = evaluation.evaluate(mirrored, BENCHMARK, **swapped, resamples=Resamples(100))
    for name, router in straight.routers.items():
        assert mirrored.routers[name].of_oracle.value == pytest.approx(router.of_oracle.value)


def test_a_gap_that_some_resamples_do_not_have_is_said() -> None:
    strong = np.array([1.0] * 6 + [0.0] * 5)
    benchmark = data.Benchmark(
        name="b", prompts=tuple(map(str, range(11))), quality={"big": strong, "small": 1 - strong}
    )
    pair = {"strong": "big", "weak": "small"}
    result = evaluation.evaluate(
        evaluation.control_win_probs(benchmark, **pair), benchmark, **pair, resamples=Resamples(200)
    )
    # At most 5 of 11 draws are good: a binomial with chance 6/11.
    assert result.gap_not_positive == pytest.approx(0.38, abs=0.1)
    note, of_few = evaluation.results_json([result])["benchmarks"][0]["notes"]
    assert of_few.startswith("So few prompts say little")
    assert f"In {100 * result.gap_not_positive:.3g} % of the resamples big is not better than small" in note


def test_so_few_prompts_that_intervals_say_little_are_said() -> None:
    win_prob = {"mine": np.linspace(0, 1, len(BENCHMARK))}
    for count, is_said in ((19, True), (20, False)):
        few = BENCHMARK.select(np.arange(len(BENCHMARK)) < count)
        result = evaluation.evaluate(
            {"mine": win_prob["mine"][:count]}, few, strong="big", weak="small", resamples=Resamples(20, seed=0)
        )
        assert any("So few prompts" in note for note in evaluation.report.notes(result)) == is_said


def test_paired_intervals_are_narrower_than_unpaired_ones() -> None:
    win_prob = win_probs()
    win_prob["nearly as good"] = np.clip(win_prob["good"] + 1e-3 * np.sin(np.arange(len(BENCHMARK))), 0, 1)
    result = evaluation.evaluate(win_prob, BENCHMARK, resamples=Resamples(200))
    paired = result.difference["good", "nearly as good"]
    unpaired = result.routers["good"].apgr
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_grades_are_compared_not_read_as_chances() -> None:
    benchmark = make_benchmark(grades=True)
    label = evaluation.preference_label(benchmark, strong="big", weak="small")
    np.testing.assert_array_equal(label, (1 + np.sign(benchmark.quality["big"] - benchmark.quality["small"])) / 2)


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"good: expected 300 win probabilities for made up, got \(3,\)"):
        evaluation.evaluate({"good": np.ones(3)}, BENCHMARK)
    with pytest.raises(InputError, match=r"'bigg' is not one of the 2 models \(did you mean 'big'\?\)"):
        evaluation.evaluate(win_probs(), BENCHMARK, strong="bigg")
    nameless = data.Benchmark(name="n", prompts=BENCHMARK.prompts, quality=BENCHMARK.quality)
    with pytest.raises(InputError, match="names no strong and no weak model"):
        evaluation.evaluate(win_probs(), nameless)


def printed(result: evaluation.BenchmarkResult, *, width: int, is_terminal: bool = True) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=is_terminal)
    evaluation.print_table(result, console)
    return console.export_text()


LONG_NAME = "a-router of a long [bold]name, it is true"


@pytest.fixture(scope="module")
def long_result() -> evaluation.BenchmarkResult:
    return evaluation.evaluate({**win_probs(), LONG_NAME: win_probs()["good"]}, BENCHMARK, resamples=Resamples(100))


@pytest.mark.parametrize(("width", "longest"), [(60, 78), (80, 80), (100, 100), (200, 111)])
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
    rows = [line for line in text.splitlines() if line.rstrip().endswith("]")]
    # The oracle is 100 % of itself, without an interval.
    assert [line.count("[") - line.count("[bold") for line in rows] == [3, 4, 4, 4, 4]
    assert max(map(len, text.splitlines())) <= longest
    # Names are whole but for where they are broken, and their brackets are no markup.
    assert name.replace(" ", "") in "".join(line[: longest - 70] for line in text.splitlines()).replace(" ", "")


def test_a_title_is_broken_on_a_terminal_alone(long_result: evaluation.BenchmarkResult) -> None:
    long = dataclasses.replace(long_result, strong="strong " * 30)
    assert max(map(len, printed(long, width=80).splitlines())) <= 80
    assert "strong " * 30 in printed(long, width=80, is_terminal=False)


def test_reports_say_the_same() -> None:
    result = evaluation.evaluate(win_probs(), BENCHMARK, resamples=Resamples(100))
    markdown = evaluation.markdown_table([result])
    text = printed(result, width=80)
    figure = f"{result.routers['good'].apgr.value:.3f}"
    assert figure in markdown
    assert figure in text
    assert all(len(line) <= 80 for line in text.splitlines())
    described = json.loads(json.dumps(evaluation.results_json([result]), allow_nan=False))
    assert described["benchmarks"][0]["routers"]["good"]["apgr"]["value"] == result.routers["good"].apgr.value
    assert len(described["benchmarks"][0]["difference"]) == 4 * 3 / 2
