"""Readers of public formats on small files in those formats."""

import decimal
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from routerjax import InputError, data
from routerjax.data import readers
from routerjax.tables import write_table

LONG = "What is the capital of France?"


def arena_rows(**changes: object) -> dict[str, list]:
    rows = {
        "id": [1, 2, 3, 4],
        "model_a": ["x", "y", "x", "z"],
        "model_b": ["y", "x", "z", "x"],
        "prompt": [json.dumps(turns) for turns in ([LONG, "and of Spain?"], ["hi"], [LONG + " \ud83d"], [None, LONG])],
        "response_a": ["[]"] * 4,
        "response_b": ["[]"] * 4,
        "winner_model_a": [1, 0, 0, 0],
        "winner_model_b": [0, 0, 1, 1],
        "winner_tie": [0, 1, 0, 0],
    }
    return rows | changes


def write(folder: Path, rows: dict, name: str = "battles.parquet") -> Path:
    path = folder / name
    write_table(pa.table(rows), str(path))
    return path


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_arena(tmp_path: Path, ending: str) -> None:
    read = data.read_preferences(write(tmp_path, arena_rows(), f"arena.{ending}"))
    # First turns alone; "hi" and the missing turn are under 16 characters; half an emoji is replaced.
    assert read.prompts == (LONG, LONG + " \ufffd")
    assert read.outcome.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert read.models == ("x", "y", "z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"winner_tie": [1, 1, 0, 0]}, "row 0: exactly one of winner_model_a, winner_tie, winner_model_b must be 1"),
        ({"winner_tie": [0, 0, 0, 0]}, "row 1: exactly one of"),
        ({"prompt": ["[", "[]", "[]", "[]"]}, "row 0: column prompt must be a JSON list of turns"),
        ({"prompt": ['"text"'] * 4}, "row 0: column prompt must be a JSON list of turns, got"),
        ({"prompt": ['["short"]'] * 4}, "has no battles left: all 4 rows were dropped"),
        ({"model_a": ["x", "y", None, "z"]}, "row 2: column model_a must be text, got nothing"),
        ({"model_a": ["x", "y", "z", "z"]}, "row 2: column model_b must be another model than model_a"),
    ],
)
def test_arena_rows_that_are_no_battles(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.read_preferences(write(tmp_path, arena_rows(**changes)))


def test_arena_columns_missing(tmp_path: Path) -> None:
    rows = arena_rows()
    rows["winner_ties"] = rows.pop("winner_tie")
    with pytest.raises(InputError, match=r"lacks the column 'winner_tie' \(did you mean 'winner_ties'\?\)"):
        data.read_preferences(write(tmp_path, rows))


def table_rows(**changes: object) -> dict[str, list]:
    rows = {
        "prompt": ["a", "b", "c", "d"],
        "model_a": ["x", "y", "x", "z"],
        "model_b": ["y", "x", "z", "x"],
        "winner": ["model_a", "tie", "model_b", "model_a"],
    }
    return {name: column for name, column in (rows | changes).items() if column is not None}


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_hard_and_soft_outcomes_weights_and_dropped_rows(tmp_path: Path, ending: str) -> None:
    hard = data.read_preferences(write(tmp_path, table_rows(), f"hard.{ending}"))
    assert hard.outcome.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    soft_rows = table_rows(preference_b=[0.25, 0.5, 1.0, 0.0], weight=[1.0, 2.0, 0.5, 1.0])
    soft = data.read_preferences(write(tmp_path, soft_rows, f"soft.{ending}"))
    assert soft.outcome.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert soft.weight.tolist() == [1, 2, 0.5, 1]
    flip = table_rows(winner=None, preference_b=[0.5, 0.5, 0.5, 0.0], seen=[True, False, False, True])
    read = data.read_preferences(write(tmp_path, flip, f"flip.{ending}"), drop_where=["seen"])
    assert read.outcome.tolist() == [[0.5, 0, 0.5]] * 2  # a coin flip is no tie
    assert read.models == ("x", "y", "z")


def test_a_missing_preference_falls_back_on_the_winner(tmp_path: Path) -> None:
    read = data.read_preferences(write(tmp_path, table_rows(preference_b=[0.25, None, None, None])))
    assert read.label.tolist() == [0.75, 0.5, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"winner": ["model_a", "model_c", "tie", "tie"]}, r"row 1: column winner must be .*got 'model_c'"),
        ({"preference_b": [0.9, 0.5, 1.0, 0.0]}, r"row 0: column preference_b is 0.9, against column winner"),
        ({"preference_b": [0.1, 0.5, 1.5, 0.0]}, r"row 2: column preference_b must be in \[0, 1\], got 1.5"),
        ({"winner": None, "preference_b": [0.1, None, 1.0, 0.0]}, "row 1: column preference_b"),
        ({"weight": [1.0, 1.0, None, 1.0]}, "row 2: column weight must be a number, got nothing"),
        ({"weight": [1.0, 1.0, -1.0, 1.0]}, "row 2: column weight must be finite and not negative"),
        ({"weight": ["1", "b", "c", "d"]}, "row 1: column weight must be a number, got 'b'"),
        ({"weight": [[1], [1], [1], [1]]}, r"row 0: column weight must be a number, got \[1\]"),
        ({"winner": [["model_a"]] * 4}, r"row 0: column winner must be text, got \['model_a'\]"),
        ({"model_a": ["x", "y ", "x", "z"]}, "row 1: column model_a must be a name .* white space around it, got 'y '"),
        ({"model_b": ["y", "x", "z", ""]}, "row 3: column model_b must be a name that is not empty"),
        ({"prompt": ["a", " ", "c", "d"]}, "row 1: column prompt must be text that is not empty"),
        ({"prompt": [1, 2, 3, 4]}, r"row 0: column prompt must be text, got 1 \(int64\)"),
        ({"winner": None}, "has neither column winner nor preference_b"),
        ({"winner": None, "winer": ["tie"] * 4}, r"neither column winner nor preference_b \(did you mean 'winer'\?\)"),
        ({"model_b": None}, r"lacks the column 'model_b' \(did you mean 'model_a'\?\)"),
    ],
)
def test_table_rows_that_are_no_battles(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.read_preferences(write(tmp_path, table_rows(**changes)))


def test_errors_name_the_row_of_the_file(tmp_path: Path) -> None:
    rows = table_rows(model_b=["y", "x", "z", "z"], seen=[True, True, False, False])
    with pytest.raises(InputError, match="row 3: column model_b must be another model"):
        data.read_preferences(write(tmp_path, rows), drop_where=["seen"])


def test_drop_where_must_be_a_boolean_column(tmp_path: Path) -> None:
    path = write(tmp_path, table_rows(seen=[True, False, None, True]))
    assert data.read_preferences(path, drop_where=["seen"]).prompts == ("b", "c")
    with pytest.raises(InputError, match="column prompt must be true or false"):
        data.read_preferences(path, drop_where=["prompt"])
    with pytest.raises(InputError, match=r"lacks the column 'sean' \(did you mean 'seen'\?\)"):
        data.read_preferences(path, drop_where=["sean"])


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        data.read_preferences(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="a Hugging Face data set is named owner/name"):
        data.read_preferences("battles")


def test_json_lines_are_the_same_in_whatever_parts_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "battles.jsonl"
    rows = [
        {"prompt": f"p{row % 3}", "model_a": "a", "model_b": "b", "preference_b": row % 2 if row < 5 else 0.25, "n": []}
        for row in range(9)
    ]
    rows[7]["dropped"] = True  # a column that begins late
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = data.read_preferences(path, drop_where=["dropped"])
    monkeypatch.setattr(readers, "ROWS_A_PART", 2)
    monkeypatch.setattr(readers, "JSON_BYTES_AT_ONCE", 0)
    parts = data.read_preferences(path, drop_where=["dropped"])
    assert parts.prompts == whole.prompts == tuple(row["prompt"] for row in rows if "dropped" not in row)
    np.testing.assert_array_equal(parts.outcome, whole.outcome)
    assert parts.outcome[:6, 2].tolist() == [0, 1, 0, 1, 0, 0.25]
    rows[8]["model_b"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"row 8: column model_b must be text, got nothing \(1 such rows\)"):
        data.read_preferences(path, drop_where=["dropped"])


def test_the_hub_gives_the_same_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = arena_rows()
    requested = []

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        requested.append((name, split))
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read = data.read_preferences("lmsys/lmsys-arena-human-preference-55k")
    assert requested == [("lmsys/lmsys-arena-human-preference-55k", "train")]
    from_file = data.read_preferences(write(tmp_path, rows))
    assert read.prompts == from_file.prompts
    np.testing.assert_array_equal(read.outcome, from_file.outcome)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach the hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        InputError, match=r"cannot read 'owner/name', which is no file here, from the .*: Couldn't reach"
    ):
        data.read_preferences("owner/name")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_what_is_written_is_read_back(tmp_path: Path, ending: str) -> None:
    outcome = np.asarray([[1, 0, 0], [0, 1, 0], [0.25, 0, 0.75]])
    made = data.Preferences.from_names(["p, q", "r\ns", "t"], ["x", "y", "z"], ["y", "z", "x"], outcome, np.ones(3) * 2)
    data.write_preferences(made, tmp_path / f"battles.{ending}")
    read = data.read_preferences(tmp_path / f"battles.{ending}")
    assert (read.prompts, read.models) == (made.prompts, made.models)
    for name in ("model_a", "model_b", "outcome", "weight"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("num_outcomes", [3, 4])
def test_any_outcomes_are_read_back(tmp_path: Path, num_outcomes: int, ending: str) -> None:
    rng = np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(num_outcomes), size=60) * (rng.random((60, num_outcomes)) < 0.7)
    soft = soft[soft.sum(axis=1) > 0]
    coin_flip = np.asarray([[0.5, 0, 0.5, 0]])[:, :num_outcomes]
    outcome = np.concatenate([np.eye(num_outcomes), soft / soft.sum(axis=1, keepdims=True), coin_flip])
    prompts = [f"prompt {row}" for row in range(len(outcome))]
    made = data.Preferences.from_names(prompts, ["x"] * len(outcome), ["y"] * len(outcome), outcome)
    # A table of some of them has the outcomes of all: ties that are known not to be bad stay known.
    for name, battles in (("all", made), ("first", made.select(np.arange(2)))):
        data.write_preferences(battles, tmp_path / f"{name}.{ending}")
        read = data.read_preferences(tmp_path / f"{name}.{ending}")
        np.testing.assert_allclose(read.outcome, battles.outcome, atol=2e-7)


@pytest.mark.parametrize("spelling", ["tie (bothbad)", "both_bad"])
def test_a_tie_of_two_bad_answers_is_told_from_others(tmp_path: Path, spelling: str) -> None:
    winner = ["model_a", spelling, "tie", "model_b"]
    for rows in (table_rows(winner=winner), table_rows(winner=winner, preference_b=[0, 0.5, 0.5, 1])):
        read = data.read_preferences(write(tmp_path, rows))
        assert read.outcome.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
        assert read.label.tolist() == [1, 0.5, 0.5, 0]
        (tmp_path / "battles.parquet").unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preference_tie": [0.1] * 4}, "lacks the column 'preference_b'"),
        ({"preference_b": [0.5] * 4, "preference_both_bad": [0.1] * 4}, "lacks the column 'preference_tie'"),
        (
            {"preference_b": [0.4, 0.5, 0.5, 0.5], "preference_tie": [0.1, 1.1, 0, 0]},
            "row 1: column preference_tie",
        ),
        (
            {"preference_b": [0.2, 0.5, 0.6, 0.5], "preference_tie": [0.2, 1, 0.9, 0]},
            "row 2: .* ties half, got 0.6",
        ),
        ({"preference_b": [0.2, None, 0.6, 0.5], "preference_tie": [0.2, 1, 0, 0]}, "row 1: .* given together"),
        (
            {"preference_b": [0.2, 0.5, 0.6, 0.5], "preference_tie": [0.2, 1, 0, None]},
            "row 3: .* given together",
        ),
    ],
)
def test_soft_ties_that_are_none(tmp_path: Path, changes: dict, message: str) -> None:
    rows = table_rows(winner=["model_a", "tie", "model_b", "tie"], **changes)
    with pytest.raises(InputError, match=message):
        data.read_preferences(write(tmp_path, rows))


def test_text_and_numbers_are_read_in_every_type_of_arrows(tmp_path: Path) -> None:
    expected = data.read_preferences(write(tmp_path, table_rows(weight=[1.5, 2.0, 0.5, 1.0])))
    weight = pa.array([decimal.Decimal(text) for text in ("1.5", "2", "0.5", "1")])
    for number, kind in enumerate((pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))):
        columns = {name: pa.array(column).cast(kind) for name, column in table_rows().items()}
        columns["prompt"] = pa.chunked_array([columns["prompt"][:1], columns["prompt"][1:]])
        path = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(pa.table({**columns, "weight": weight}), path, row_group_size=2)
        read = data.read_preferences(path)
        assert (read.prompts, read.models) == (expected.prompts, expected.models)
        for name in ("model_a", "model_b", "outcome", "weight"):
            np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))


def test_columns_that_battles_do_not_need_may_hold_anything(tmp_path: Path) -> None:
    rows = [dict(zip(table_rows(), row, strict=True)) for row in zip(*table_rows().values(), strict=True)]
    odd = [1, "2", 10**30, {"a": []}]
    path = tmp_path / "battles.jsonl"
    path.write_text("\n".join(json.dumps({**row, "turn": turn}) for row, turn in zip(rows, odd, strict=True)))
    assert data.read_preferences(path).prompts == ("a", "b", "c", "d")


def test_a_folder_is_no_battle_file(tmp_path: Path) -> None:
    (tmp_path / "battles.parquet").mkdir()
    with pytest.raises(InputError, match=r"battles\.parquet is a folder, not a file"):
        data.read_preferences(tmp_path / "battles.parquet")
    with pytest.raises(InputError, match="is a folder, not a file"):
        data.read_preferences(tmp_path)


def test_a_text_that_occurs_often_is_held_once(tmp_path: Path) -> None:
    rows = table_rows(prompt=["q", "p", "q", "p"])
    read = data.read_preferences(write(tmp_path, rows))
    assert read.unique_prompts == ("q", "p")
    assert read.prompt_index.tolist() == [0, 1, 0, 1]
    assert read.select(np.asarray([1, 2])).unique_prompts == ("p", "q")
    assert read.prompts[0] is read.prompts[2]
