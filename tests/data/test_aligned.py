"""Battles and embeddings that are aligned by row order."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from routerjax import InputError, data
from routerjax.tables import write_table

FIRST, SECOND = "What is the capital of France?", "Prove that the root of 2 is irrational."
# The third is 15 characters and spaces around them; the fourth is a greeting. Neither has an embedding.
TURNS = [[FIRST], [SECOND, "Another way?"], ["   exactly 15 chrs "], ["hi"], [FIRST, "And of Spain?"], ["x" * 16]]
BATTLES = {
    "model_a": ["x", "y", "x", "z", "z", "x"],
    "model_b": ["y", "x", "z", "x", "x", "z"],
    "prompt": [json.dumps(turns) for turns in TURNS],
    "winner_model_a": [1, 0, 1, 0, 0, 0],
    "winner_model_b": [0, 0, 0, 1, 0, 1],
    "winner_tie": [0, 1, 0, 0, 1, 0],
}
ROWS = [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.5]]


def write(folder: Path, name: str, **columns: list) -> Path:
    write_table(pa.table(columns), str(folder / name))
    return folder / name


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_rows_meet_after_the_short_prompts_are_dropped(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    battles, embedding = data.read_aligned_battles(
        write(tmp_path, f"battles.{ending}", **BATTLES), write(tmp_path, f"embeddings.{ending}", embeddings=ROWS)
    )
    assert battles.prompts == (FIRST, SECOND, FIRST, "x" * 16)
    assert battles.outcome.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, [[1, 2], [3, 4], [5, 6.5]])
    np.testing.assert_array_equal(embedding[battles.prompt_index], ROWS)
    batch = data.to_batch(battles, embedding)
    assert batch.query["embedding"].shape == (3, 2)
    assert not caplog.records


def test_a_repeated_prompt_with_another_embedding_keeps_the_first_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [ROWS[0], ROWS[1], [1.0, 2.25], ROWS[3]]
    with caplog.at_level(logging.WARNING):
        _, embedding = data.read_aligned_battles(
            write(tmp_path, "b.parquet", **BATTLES), write(tmp_path, "e.parquet", embeddings=rows)
        )
    np.testing.assert_array_equal(embedding, [[1, 2], [3, 4], [5, 6.5]])
    assert caplog.messages == [
        "1 of 4 rows repeat a prompt with another embedding (by up to 2.5e-01); the first is taken"
    ]


def test_several_sources_are_aligned_each_and_share_their_prompts(tmp_path: Path) -> None:
    other = {
        "prompt": [SECOND, "A prompt of the other source", "short"],
        "model_a": ["w", "x", "x"],
        "model_b": ["x", "w", "w"],
        "winner": ["tie (bothbad)", "model_b", "tie"],  # a plain table keeps its short prompts
    }
    battles, embedding = data.read_aligned_battles(
        [write(tmp_path, "b1.parquet", **BATTLES), write(tmp_path, "b2.jsonl", **other)],
        [
            write(tmp_path, "e1.parquet", embeddings=ROWS),
            write(tmp_path, "e2.parquet", embeddings=[[3.0, 4.0], [7.0, 8.0], [9.0, 9.0]]),
        ],
    )
    assert battles.models == ("w", "x", "y", "z")
    assert battles.unique_prompts == (FIRST, SECOND, "x" * 16, "A prompt of the other source", "short")
    np.testing.assert_array_equal(embedding, [[1, 2], [3, 4], [5, 6.5], [7, 8], [9, 9]])
    assert battles.outcome[4].tolist() == [0, 1, 0]


def test_the_hub_gives_the_same_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {"owner/battles": BATTLES, "owner/embeddings": {"embeddings": ROWS}}

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        assert split == "train"
        return datasets.Dataset.from_dict(hub[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    battles, embedding = data.read_aligned_battles("owner/battles", "owner/embeddings")
    files = write(tmp_path, "b.parquet", **BATTLES), write(tmp_path, "e.parquet", embeddings=ROWS)
    same_battles, same_embedding = data.read_aligned_battles(*files)
    assert battles.prompts == same_battles.prompts
    np.testing.assert_array_equal(embedding, same_embedding)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embeddings": ROWS + ROWS[:2]}, r"holds 6 embeddings, but .* has 4 battles once its short prompts are"),
        ({"embedding": ROWS}, r"lacks the column 'embeddings' \(did you mean 'embedding'\?\)"),
        ({"embeddings": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, "must hold lists of one length, got 1 to 2"),
        ({"embeddings": [1.0, 2.0, 3.0, 4.0]}, "must hold a list of numbers in every row, got 4 of double"),
        ({"embeddings": [["a"]] * 4}, "column embeddings must hold numbers"),
        ({"embeddings": [*ROWS[:3], [1.0, None]]}, r"e\.parquet: row 3: column embeddings is not finite"),
    ],
)
def test_embeddings_that_do_not_belong(tmp_path: Path, columns: dict, message: str) -> None:
    battles = write(tmp_path, "b.parquet", **BATTLES)
    with pytest.raises(InputError, match=message):
        data.read_aligned_battles(battles, write(tmp_path, "e.parquet", **columns))


def test_sources_must_be_paired_and_equally_wide(tmp_path: Path) -> None:
    battles = write(tmp_path, "b.parquet", **BATTLES)
    rows = write(tmp_path, "e.parquet", embeddings=ROWS)
    with pytest.raises(InputError, match="each source of battles needs one of embeddings, got 2 and 1"):
        data.read_aligned_battles([battles, battles], rows)
    wide = write(tmp_path, "wide.parquet", embeddings=[[1.0, 2.0, 3.0]] * 4)
    with pytest.raises(InputError, match="must be equally wide, got 2 and 3"):
        data.read_aligned_battles([battles, battles], [rows, wide])
