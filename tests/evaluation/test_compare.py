"""From router folders and score files to a folder of results: which pair is scored, and what is refused first."""

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from routerjax import InputError, Router, data, evaluation, save_router
from routerjax.features import GivenFeaturizer
from routerjax.metrics import Resamples
from routerjax.tables import write_table
from tests.evaluation.test_evaluate import BENCHMARK, printed
from tests.routers import tiny_router


def benchmark_file(folder: Path) -> str:
    path = folder / "made_up.parquet"
    if not path.exists():
        data.write_benchmark_table(BENCHMARK, path)
    return str(path)


def test_router_folders_and_score_files_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ROUTERJAX_CACHE", str(tmp_path / "cache"))
    router = tiny_router(tmp_path)
    save_router(router, tmp_path / "run" / "router")
    save_router(router, tmp_path / "run" / "knn")  # whatever is there is the control
    win_prob = router.win_prob(BENCHMARK.prompts)
    write_table(pa.table({"prompt": BENCHMARK.prompts, "win_prob": win_prob}), str(tmp_path / "外部.csv"))
    results = evaluation.evaluate_routers(
        [tmp_path / "run"],
        benchmarks=[benchmark_file(tmp_path)],
        score_files=[tmp_path / "外部.csv"],
        strong="big",
        weak="small",
        resamples=Resamples(50),
        output=tmp_path / "results",
    )
    routers = results[0].routers
    assert set(routers) == {"run", "knn", "外部", "random", "constant", "oracle"}
    assert routers["run"].apgr == routers["外部"].apgr
    assert (tmp_path / "results" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert caplog.text.count("curves.png shows boxes for characters of names that its font lacks") == 1
    described = json.loads((tmp_path / "results" / "results.json").read_text())
    pair = {"strong": "big", "weak": "small", "own_strong": "big", "own_weak": "small"}
    assert described["benchmarks"][0]["pairs"] == {"run": pair, "knn": pair}
    assert described["benchmarks"][0]["notes"] == []
    assert re.search(r"\| run \| 0\.\d{3} \[", (tmp_path / "results" / "results.md").read_text())
    smaller = evaluation.evaluate_routers(
        [tmp_path / "run"],
        benchmarks=[benchmark_file(tmp_path)],
        strong="big",
        weak="small",
        exclude_smallest=100,
        resamples=Resamples(10),
        output=tmp_path / "smaller",
    )
    assert smaller[0].num_prompts == 200


def test_a_router_is_scored_on_the_benchmarks_pair_where_it_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTERJAX_CACHE", str(tmp_path / "cache"))
    router = tiny_router(tmp_path)
    save_router(router, tmp_path / "mine")
    prompts, rng = BENCHMARK.prompts[:20], np.random.default_rng(0)
    quality = {name: rng.random(20) for name in ("medium", "small", "big", "unheard")}

    def evaluated(strong: str, weak: str) -> tuple[evaluation.BenchmarkResult, str]:
        low, high = sorted((quality[strong], quality[weak]), key=np.mean)
        table = data.Benchmark(name="b", prompts=prompts, quality={strong: high, weak: low})
        path, output = tmp_path / f"{strong}-{weak}.parquet", tmp_path / f"{strong}-{weak}"
        data.write_benchmark_table(table, path)
        (result,) = evaluation.evaluate_routers(
            [tmp_path / "mine"],
            benchmarks=[str(path)],
            strong=strong,
            weak=weak,
            resamples=Resamples(10),
            output=output,
        )
        described = json.loads((output / "results.json").read_text())["benchmarks"][0]
        note = next((note for note in described["notes"] if note.startswith("mine ")), "")
        reports = [(output / name).read_text() for name in ("results.md", "report.html")]
        for report in (printed(result, width=80), *reports):
            assert note in html.unescape(" ".join(report.split()))
        assert dataclasses.asdict(result.pairs["mine"]) == described["pairs"]["mine"]
        return result, note

    def is_scored_as(result: evaluation.BenchmarkResult, *pair: str) -> bool:
        curve, scored = result.routers["mine"].curve, router.win_prob(prompts, *pair)
        return np.array_equal(curve.threshold[1:], np.unique(scored.astype(float))[::-1])

    result, note = evaluated("big", "small")
    assert is_scored_as(result, "big", "small")
    assert note == ""
    result, note = evaluated("medium", "small")  # known, but not the router's own pair
    assert is_scored_as(result, "medium", "small")
    assert note.startswith("mine is scored on this benchmark's pair; a calibration of its own pair, big or small,")
    result, note = evaluated("small", "big")  # the other way round
    assert is_scored_as(result, "small", "big")
    result, note = evaluated("unheard", "small")
    assert is_scored_as(result, "big", "small")
    assert note == "mine is scored on its own pair, big or small: it does not know both models of this benchmark."


def test_what_is_refused_is_refused_before_any_prompt_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores_nothing(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("a prompt was scored")

    monkeypatch.setattr(Router, "win_prob", scores_nothing)
    router = tiny_router(tmp_path)
    save_router(router, tmp_path / "router")
    given = GivenFeaturizer(source="mine.npy", width=16, fingerprint="f")
    save_router(dataclasses.replace(router, featurizer=given), tmp_path / "deaf")
    other, scores = tmp_path / "other.parquet", tmp_path / "outside.csv"
    equal = dataclasses.replace(BENCHMARK, quality={name: BENCHMARK.quality["big"] for name in BENCHMARK.quality})
    data.write_benchmark_table(equal, other)
    write_table(pa.table({"prompt": ["x"], "win_prob": [0.5]}), str(scores))
    pair = {"strong": "big", "weak": "small"}
    # The first benchmark is sound: it waits for the second one.
    both = [benchmark_file(tmp_path), str(other)]
    for arguments, message in (
        ({"benchmarks": both, **pair}, "the same mean quality"),
        ({"benchmarks": both[:1]}, "names no strong and no weak model"),
        ({"benchmarks": both[:1], "strong": "big"}, "names no strong and no weak model"),
        ({"benchmarks": [both[0], both[0]], **pair}, f"{both[0]} is named twice"),
        ({"benchmarks": [both[0], f"{tmp_path}/in/{Path(both[0]).name}"], **pair}, "is the name of two benchmarks"),
        ({"benchmarks": both[:1], "score_files": [scores, scores], **pair}, "outside.csv is named twice"),
        ({"benchmarks": both[:1], "score_files": [tmp_path / "router.csv"], **pair}, "router is a router's name in"),
        ({"benchmarks": both[:1], "score_files": [tmp_path / "oracle.csv"], **pair}, "oracle is a control's name in"),
        ({"benchmarks": [str(tmp_path / "router" / "router.json")], **pair}, "must end in .parquet, .csv, .jsonl, got"),
        ({"benchmarks": both[:1], "exclude_smallest": -1, **pair}, r"--exclude-smallest\) must be at least 0, got -1"),
        ({"benchmarks": both[:1], "score_files": [scores], **pair}, "no win_prob for 300 of the 300 prompts"),
        ({"benchmarks": both[:1], "score_files": [tmp_path / "no.csv"], **pair}, "no file .*no.csv"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation.evaluate_routers([tmp_path / "router"], **arguments, output=tmp_path / "results")
    usual = {"benchmarks": both[:1], **pair}
    twice = [tmp_path / "router", tmp_path / "router"]
    with pytest.raises(InputError, match=r"router is named twice: once is enough"):
        evaluation.evaluate_routers(twice, **usual, output=tmp_path / "results")
    with pytest.raises(InputError, match=r"--encoder is of routers, and none is named: leave elsewhere out"):
        evaluation.evaluate_routers([], score_files=[scores], encoder="elsewhere", **usual, output=tmp_path / "results")
    with pytest.raises(InputError, match=r"^deaf: this router was trained on given embeddings \(mine.npy\)"):
        evaluation.evaluate_routers([tmp_path / "router", tmp_path / "deaf"], **usual, output=tmp_path / "results")
    with pytest.raises(InputError, match=r"cannot write .*: .*outside.csv is a file, not a folder"):
        evaluation.evaluate_routers([tmp_path / "router"], **usual, output=scores / "below" / "results")
    with pytest.raises(AssertionError, match="a prompt was scored"):
        evaluation.evaluate_routers([tmp_path / "router"], benchmarks=both[:1], **pair, output=tmp_path / "results")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": ["x"], "win_prob": [0.5]}, "no win_prob for 300 of the 300 prompts of made up"),
        ({"prompt": ["x"], "win_prob": [1.5]}, r"row 0: column win_prob must be in \[0, 1\], got 1.5"),
        ({"prompt": ["x", "x"], "win_prob": [0.5, 0.6]}, "row 1: a second, different win_prob for the prompt 'x'"),
        ({"prompt": ["x"], "winprob": [0.5]}, r"lacks the column 'win_prob' \(did you mean 'winprob'\?\)"),
        ({"prompt": ["x"], "win_prob": ["high"]}, "row 0: column win_prob must be a number, got"),
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
    with pytest.raises(InputError, match=r"no router .*missing: expected a router's folder, or a run's"):
        evaluation.evaluate_routers([tmp_path / "missing"], **arguments, output=output)
    assert not output.exists()
    output.mkdir()
    (output / "mine").touch()
    with pytest.raises(InputError, match="exists already"):
        evaluation.evaluate_routers([tmp_path], **arguments, output=output)
