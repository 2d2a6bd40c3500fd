"""Tables read part by part hold what their parts do, and each text once, as they come."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from routerjax.tables import dictionaries, read_table
from routerjax.tables.dictionaries import joined_table

ROWS, TEXTS = 200, 5_000
SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


def part(seed: int, *, rows: int = ROWS, encoded: bool = False) -> pa.Table:
    rng = np.random.default_rng(seed)
    texts = [None if place % 17 == 0 else f"text {place} " + "x" * 500 for place in rng.integers(TEXTS, size=rows)]
    column = pa.array(texts, pa.string())
    return pa.table({"number": rng.integers(9, size=rows), "text": column.dictionary_encode() if encoded else column})


@pytest.mark.parametrize("encoded", [False, True])
def test_parts_are_joined_with_each_text_once(encoded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "LEAST_BYTES", 2**18)  # so that dictionaries are joined on the way
    parts = [part(seed, encoded=encoded) for seed in range(40)]
    joined = joined_table(iter(parts), SCHEMA.names)
    expected = pa.concat_tables([part(seed) for seed in range(40)])
    assert joined.column("number").to_pylist() == expected.column("number").to_pylist()
    assert joined.column("text").to_pylist() == expected.column("text").to_pylist()
    (chunk,) = joined.column("text").chunks
    assert len(set(chunk.dictionary.to_pylist())) == len(chunk.dictionary)


def test_texts_of_parts_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "LEAST_BYTES", 2**18)
    before, most = pa.total_allocated_bytes(), 0

    def parts() -> Iterator[pa.Table]:
        nonlocal most
        for seed in range(150):
            yield part(seed, rows=1_000)
            most = max(most, pa.total_allocated_bytes() - before)

    joined = joined_table(parts(), SCHEMA.names)
    # The result, the next one, and what is waiting for it; all parts have 60 MB of texts.
    assert most < 4 * joined.nbytes < 20e6


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_files_give_dictionaries_of_the_columns_that_are_named(ending: str, tmp_path: Path) -> None:
    table, path = (
        part(0).set_column(1, "text", pa.array([f"t{row % 7}" for row in range(ROWS)])),
        tmp_path / f"t.{ending}",
    )
    if ending == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path, row_group_size=64)
    named = read_table(path, columns=["text", "number"])
    assert named.column_names == ["text", "number"]
    assert named.column("text").type == dictionaries.TEXT_DICTIONARY
    assert named.column("text").to_pylist() == table.column("text").to_pylist()
    assert [int(number) for number in named.column("number").to_pylist()] == table.column("number").to_pylist()
    assert read_table(path).column("text").to_pylist() == table.column("text").to_pylist()
