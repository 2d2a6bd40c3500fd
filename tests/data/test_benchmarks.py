"""RouteLLM's evals folder in miniature, benchmark tables, golden answers."""

import csv
import decimal
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from routerjax import InputError, data
from routerjax.tables import write_table

STRONG, WEAK = "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def evals(tmp_path: Path) -> Path:
    root = tmp_path / "evals"
    for name in ("mmlu/responses", "gsm8k", "mt_bench"):
        (root / name).mkdir(parents=True)
    for subject in range(57):
        rows = [
            {"prompt": f"Question {row} of {subject}\nA. yes\nB. no", WEAK: row == 0, STRONG: row < 2}
            for row in range(3)
        ]
        write_csv(root / "mmlu" / "responses" / f"mmlu_subject{subject:02}.csv", rows)
    write_lines(root / "mmlu" / "contaminated_prompts.jsonl", [{"eval_prompt": "Question 0 of 3\nA. yes\nB. no"}])
    rows = [{"prompt": f"How many, {row}?", WEAK: False, STRONG: True, f"{WEAK}_response": "x"} for row in range(4)]
    write_csv(root / "gsm8k" / "gsm8k_responses.csv", rows)
    write_lines(root / "gsm8k" / "contaminated_prompts.jsonl", [{"eval_prompt": "How many, 2?"}])
    questions = [{"question_id": 80 + row, "turns": [f"first {row}", f"second {row}"]} for row in range(4)]
    write_lines(root / "mt_bench" / "question.jsonl", questions)
    judgements = [
        {"question_id": 80 + row, "model": model, "turn": turn, "score": base + turn + row}
        for row in range(4)
        for model, base in ((STRONG, 3), (WEAK, 1))
        for turn in (2, 1)
    ]
    write_lines(root / "mt_bench" / "judgements.jsonl", judgements)
    contaminated = [{"eval_prompt": "first 0"}, {"eval_prompt": "second 3"}]
    write_lines(root / "mt_bench" / "contaminated_prompts.jsonl", contaminated)
    return root


def test_mmlu(evals: Path) -> None:
    benchmark = data.load_benchmark("mmlu", evals)
    assert len(benchmark) == 57 * 3 - 1
    assert (benchmark.strong, benchmark.weak) == (STRONG, WEAK)
    assert benchmark.quality[STRONG].mean() == pytest.approx((57 * 2 - 1) / 170)
    assert benchmark.quality[WEAK].sum() == 56
    assert benchmark.domain is not None
    assert benchmark.domain[:4] == ("subject00",) * 3 + ("subject01",)
    assert "Question 0 of 3\nA. yes\nB. no" not in benchmark.prompts


def test_gsm8k_and_mt_bench(evals: Path) -> None:
    assert data.load_benchmark("gsm8k", evals).prompts == ("How many, 0?", "How many, 1?", "How many, 3?")
    benchmark = data.load_benchmark("mt_bench", evals)
    # A question is dropped if either of its turns is contaminated; its quality is the mean grade of both.
    assert benchmark.prompts == ("first 1", "first 2")
    assert benchmark.quality[STRONG].tolist() == [5.5, 6.5]
    assert benchmark.quality[WEAK].tolist() == [3.5, 4.5]


def test_what_is_missing_is_named(evals: Path) -> None:
    with pytest.raises(InputError, match=r"the benchmark must be one of .*got 'mtbench' \(did you mean 'mt_bench'\?\)"):
        data.load_benchmark("mtbench", evals)
    with pytest.raises(InputError, match=r"no folder .*expected RouteLLM's routellm/evals folder"):
        data.load_benchmark("mmlu", evals / "mmlu")
    (evals / "mmlu" / "responses" / "mmlu_subject07.csv").unlink()
    with pytest.raises(InputError, match=r"must hold 57 files mmlu_SUBJECT\.csv, has 56"):
        data.load_benchmark("mmlu", evals)
    (evals / "gsm8k" / "contaminated_prompts.jsonl").unlink()
    with pytest.raises(InputError, match=r"no file .*contaminated_prompts.jsonl"):
        data.load_benchmark("gsm8k", evals)
    path = evals / "mt_bench" / "judgements.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5] + lines[6:]))
    with pytest.raises(InputError, match=f"question 81 needs 2 grades of {STRONG}"):
        data.load_benchmark("mt_bench", evals)
    path.write_text("".join(lines)[:-20])
    with pytest.raises(InputError, match="line 16 is not JSON"):
        data.load_benchmark("mt_bench", evals)


def test_answers_that_are_neither_right_nor_wrong(evals: Path) -> None:
    rows = [{"prompt": "p", WEAK: "", STRONG: True}]
    write_csv(evals / "gsm8k" / "gsm8k_responses.csv", rows)
    with pytest.raises(InputError, match=f"row 0: column {WEAK} must be true or false, got nothing"):
        data.load_benchmark("gsm8k", evals)
    shutil.rmtree(evals)


def small(count: int = 40) -> data.Benchmark:
    rng = np.random.default_rng(0)
    quality = {name: rng.integers(2, size=count).astype(float) for name in ("x", "y", "z")}
    return data.Benchmark(name="small", prompts=tuple(f"q{row}" for row in range(count)), quality=quality)


def test_smallest_by_hash() -> None:
    benchmark = small()
    first, rest = data.smallest_by_hash(benchmark, 10)
    by_hash = sorted(benchmark.prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    assert set(first.prompts) == set(by_hash[:10])
    assert set(rest.prompts) == set(by_hash[10:])
    where = [benchmark.prompts.index(prompt) for prompt in first.prompts]
    assert where == sorted(where)
    np.testing.assert_array_equal(first.quality["x"], benchmark.quality["x"][where])
    for count in (0, 40):
        with pytest.raises(InputError, match="count must be between 1 and 39"):
            data.smallest_by_hash(benchmark, count)


def test_golden_answers_are_battles() -> None:
    benchmark = data.Benchmark(
        name="b", prompts=("p", "q", "r"), quality={"x": [1, 0, 7.5], "y": [0, 0, 9.0], "z": [1, 1, 1]}
    )
    battles = data.golden_preferences(benchmark, pairs=[("x", "y")], rename={"y": "why"})
    assert battles.models == ("why", "x")
    assert battles.outcome.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert len(data.golden_preferences(benchmark)) == 9
    right_or_wrong = data.Benchmark(name="b", prompts=("p", "q", "r"), quality={"x": [1, 0, 1], "y": [0, 0, 1]})
    assert data.golden_preferences(right_or_wrong).outcome.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    with pytest.raises(InputError, match="'w' is not one of the 3 models"):
        data.golden_preferences(benchmark, pairs=[("x", "w")])


def test_tables_round_trip(tmp_path: Path) -> None:
    benchmark = small()
    data.write_benchmark_table(benchmark, tmp_path / "small.csv")
    read = data.read_benchmark_table(tmp_path / "small.csv", strong="x", weak="z")
    assert (read.name, read.prompts, read.strong, read.weak) == ("small", benchmark.prompts, "x", "z")
    assert set(read.quality) == {"x", "z"}
    np.testing.assert_array_equal(read.quality["z"], benchmark.quality["z"])


@pytest.mark.parametrize(
    ("rows", "pair", "message"),
    [
        ({"score": None}, {}, "lacks the column 'score'"),
        ({"model": ["x", "y", "x"]}, {}, "no score of 'y' for the prompt 'q'"),
        ({"model": ["x", "x", "x"]}, {}, "row 1: a second score of 'x'"),
        ({"score": ["1", "good", "1"]}, {}, "row 1: column score must be a number, got 'good'"),
        ({"score": [1.0, None, 1.0]}, {}, "row 1: column score must be a number, got nothing"),
        ({}, {"strong": "xx"}, "'xx' is not one of the 2 models"),
        ({"score": [float("inf"), 1.0, 1.0]}, {"strong": "x", "weak": "x"}, "row 0: quality of x must be finite"),
        ({"score": [1e308, 1.0, 1.0]}, {"strong": "x", "weak": "x"}, r"row 0: quality of x .*within 1e\+15 of zero"),
        ({"prompt": ["p", "p", None]}, {}, "row 2: column prompt must be text, got nothing"),
        ({"prompt": ["p", "p", " "]}, {}, "row 2: column prompt must be text that is not empty"),
        ({"prompt": [0, 0, 1]}, {}, r"row 0: column prompt must be text, got 0 \(int64\)"),
        (
            {"prompt": [[{"role": "user", "content": "p"}]] * 3},
            {},
            "row 0: column prompt must be text, got chat messages: give the text of the user's turn alone",
        ),
        ({"prompt": [{"a": 1}] * 3}, {}, "row 0: column prompt must be text, got {'a': 1}"),
        ({"model": [["x"]] * 3}, {}, r"row 0: column model must be text, got \['x'\]"),
        ({"model": ["x", None, "x"]}, {}, "row 1: column model must be text, got nothing"),
        ({"model": ["x", "x ", "x"]}, {}, "row 1: column model must be a name .* got 'x '"),
        (
            {"prompt_id": [7, 7, 7], "model": ["x", "y", "z"]},
            {},
            "row 2: column prompt is another text than in row 0, which has the same prompt_id '7'",
        ),
        ({"prompt_id": ["1", "1", ""]}, {}, "row 2: column prompt_id must be given"),
        ({"prompt_id": [1, None, 2]}, {}, "row 1: column prompt_id must be text, got nothing"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, rows: dict, pair: dict, message: str) -> None:
    rows = {"prompt": ["p", "p", "q"], "model": ["x", "y", "x"], "score": [1.0, 0.0, 1.0]} | rows
    path = tmp_path / "table.parquet"
    write_table(pa.table({name: column for name, column in rows.items() if column}), str(path))
    with pytest.raises(InputError, match=message) as refused:
        data.read_benchmark_table(path, **pair)
    # A model is looked for, and quality is checked, once the table is a benchmark.
    if "is not one of" not in message and "quality" not in message:
        assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("names", [("4.10", "4.1"), ("70", "7"), ("007", "7")])
def test_models_of_a_csv_have_the_names_that_stand_there(tmp_path: Path, names: tuple[str, str]) -> None:
    pairs = zip(names, (2, 1), strict=True)
    rows = "".join(f"p{row},{name},{int(row < right)}\n" for name, right in pairs for row in range(3))
    (tmp_path / "table.csv").write_text(f"prompt,model,score\n{rows}")
    benchmark = data.read_benchmark_table(tmp_path / "table.csv", strong=names[0], weak=names[1])
    assert {name: values.sum() for name, values in benchmark.quality.items()} == {names[0]: 2, names[1]: 1}


def test_every_arrow_type_of_text_and_number_is_one(tmp_path: Path) -> None:
    score = pa.array([decimal.Decimal("1.0"), decimal.Decimal("0.5")])
    path = tmp_path / "table.parquet"
    for text in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        for number in (score, score.cast(pa.float32()), pa.array(["1", "0.5"]), pa.array([1, 0.5])):
            columns = {"prompt": pa.array(["p", "q"]).cast(text), "model": pa.array(["x", "x"]).cast(text)}
            pyarrow.parquet.write_table(pa.table({**columns, "score": number}), path)
            assert data.read_benchmark_table(path).quality["x"].tolist() == [1, 0.5]


def test_prompts_of_one_text_are_told_apart_by_their_id(tmp_path: Path) -> None:
    rows = {"prompt_id": [0, 1, 2], "prompt": ["p", "p", "q"], "model": ["x"] * 3, "score": [1, 2, 3]}
    write_table(pa.table({**rows, "domain": [1, None, 2]}), str(tmp_path / "table.parquet"))
    benchmark = data.read_benchmark_table(tmp_path / "table.parquet")
    assert benchmark.prompts == ("p", "p", "q")
    assert benchmark.domain == ("1", "None", "2")


MALFORMED = ['{"question_id": 1, "turns": 5}', '{"question_id": 1, "turns": []}', '{"turns": ["a"]}', "\0", "[1]"]


@pytest.mark.parametrize("line", [*MALFORMED, "[" * 100_000])
def test_malformed_questions_are_one_line(evals: Path, line: str) -> None:
    path = evals / "mt_bench" / "question.jsonl"
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(InputError, match=r"question\.jsonl: line 6 "):
        data.load_benchmark("mt_bench", evals)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"question\.jsonl: line 1 is not UTF-8 text"):
        data.load_benchmark("mt_bench", evals)


def test_a_benchmark_is_checked() -> None:
    with pytest.raises(InputError, match="has no prompts"):
        data.Benchmark(name="b", prompts=(), quality={})
    with pytest.raises(InputError, match=r"one value for each of 1 prompts, got shape \(2,\)"):
        data.Benchmark(name="b", prompts=("p",), quality={"x": [1.0, 2.0]})
    with pytest.raises(InputError, match="'y' is not one of the 1 models"):
        data.Benchmark(name="b", prompts=("p",), quality={"x": [1.0]}, strong="y")
