"""Battles take few bytes each, also while they are read, joined, turned and split."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from routerjax import InputError, data
from routerjax.data import preferences

BATTLES, PROMPTS, MODELS = 300_000, 2_000, 20
KEPT = 28
"""Bytes of a battle's columns: three of int32, and four of float32."""


def save(path: Path, *, soft: bool) -> None:
    rng = np.random.default_rng(0)
    names = pa.array([f"model-{row}" for row in range(MODELS)])
    model_a = rng.integers(MODELS, size=BATTLES)
    columns = {
        "prompt": pa.array([f"prompt {row}" for row in range(PROMPTS)]).take(rng.integers(PROMPTS, size=BATTLES)),
        "model_a": names.take(model_a),
        "model_b": names.take((model_a + rng.integers(1, MODELS, size=BATTLES)) % MODELS),
    }
    if soft:
        columns["preference_b"] = pa.array(rng.random(BATTLES))
    else:
        columns["winner"] = pa.array(["model_a", "model_b", "tie"]).take(rng.integers(3, size=BATTLES))
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2**16)


@pytest.mark.parametrize(("soft", "most"), [(False, 4), (True, 6)])
def test_the_memory_of_a_run_on_many_battles_is_a_few_times_their_columns(
    soft: bool, most: int, tmp_path: Path
) -> None:
    save(tmp_path / "battles.parquet", soft=soft)
    tracemalloc.start()
    try:
        battles = data.swap_sides(data.concatenate([data.read_preferences(tmp_path / "battles.parquet")]), seed=0)
        train, held_out = data.split_by_prompt(battles, validation_fraction=0.1, seed=0)
        embedding = np.ones((PROMPTS, 1), np.float32)
        batches = data.EmbeddedPrompts(battles.unique_prompts, embedding).batches(train, batch_size=64)
        next(batches.shuffled(seed=0, epoch=0))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    columns = KEPT * (len(battles) + len(train) + len(held_out))
    assert kept < 1.2 * columns + 1e6
    assert peak < most * KEPT * BATTLES


def test_battles_are_the_same_in_whatever_parts_they_are_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    outcome = rng.dirichlet([1, 1, 1], size=50) * (1 + rng.uniform(-9e-4, 9e-4, size=(50, 1)))
    columns = {"prompts": [f"{row}" for row in range(50)], "model_a": ["a"] * 50, "model_b": ["b"] * 50}
    for rows in (7, 1000):
        monkeypatch.setattr(preferences, "ROWS_A_PART", rows)
        made = data.Preferences.from_names(**columns, outcome=outcome)
        normalised = (outcome / outcome.sum(axis=1, keepdims=True)).astype(np.float32)
        np.testing.assert_array_equal(made.outcome, normalised)
        bad = outcome.copy()
        bad[[20, 40]] *= 1.01
        with pytest.raises(InputError, match=r"row 20: column outcome must be .* \(and 1 more rows\)"):
            data.Preferences.from_names(**columns, outcome=bad)
