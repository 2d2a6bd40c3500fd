"""Embeddings made elsewhere."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from routerjax import InputError, features

EMBEDDING = np.random.default_rng(0).standard_normal((4, 3))


def declare(path: Path, content: object = None) -> Path:
    path.with_name(f"{path.name}.json").write_text(json.dumps(content or {"fingerprint": "model 1"}))
    return path


def test_npy_and_parquet_hold_the_same(tmp_path: Path) -> None:
    npy, parquet = declare(tmp_path / "e.npy"), declare(tmp_path / "e.parquet")
    np.save(npy, EMBEDDING)
    pyarrow.parquet.write_table(pa.table({"embedding": EMBEDDING.tolist(), "other": list("abcd")}), parquet)
    parquet_declared = tmp_path / "e.parquet.json"
    parquet_declared.write_text(parquet_declared.read_text(), encoding="utf-8-sig")  # as some editors save it
    for path in (npy, parquet):
        read = features.read_embeddings(path)
        np.testing.assert_array_equal(read.embedding, EMBEDDING.astype(np.float32))
        assert read.fingerprint == "model 1"
    assert read.featurizer("e.parquet").to_dict() == {
        "kind": "given",
        "source": "e.parquet",
        "width": 3,
        "fingerprint": "model 1",
    }


def test_a_file_of_float32_is_mapped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "routerjax")
    path = declare(tmp_path / "e.npy")
    whole = EMBEDDING.astype(np.float32)
    for array in (whole, whole.astype(float), whole.astype(">f4"), whole.astype(np.float32, "F")):
        np.save(path, array)
        caplog.clear()
        embedding = features.read_embeddings(path).embedding
        is_mapped = isinstance(embedding.base, np.memmap)
        assert is_mapped == (array is whole)
        assert ("a file of float32 in C order is mapped" in caplog.text) == (not is_mapped)  # memory is said
        np.testing.assert_array_equal(embedding, array)
    kept = features.Embeddings(array, "model 1")
    array[:] = 0  # what is given in memory is copied
    np.testing.assert_array_equal(kept.embedding, embedding)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.where(np.arange(4)[:, None] == 2, np.nan, EMBEDDING), "row 2: the embedding is not finite"),
        (np.where(np.arange(4)[:, None] == 1, 1e300, EMBEDDING), r"row 1: .* not finite in float32 \(1 such rows\)"),
        (EMBEDDING[0], r"must be floats of shape \[prompts, embed\]"),
        (EMBEDDING[:0], r"must be floats of shape \[prompts, embed\]"),
        (np.ones((2, 2), int), "must be floats"),
        (np.asarray([{}], object), "holds Python objects, expected floats"),
    ],
)
def test_arrays_that_are_no_embeddings(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = declare(tmp_path / "e.npy")
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        features.read_embeddings(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        features.read_embeddings(tmp_path / "none.npy")
    path = tmp_path / "e.npy"
    np.save(path, EMBEDDING)
    with pytest.raises(InputError, match="has no declared fingerprint: write"):
        features.read_embeddings(path)
    declare(path, {"finger": 1})
    with pytest.raises(InputError, match="must hold"):
        features.read_embeddings(path)
    declare(path, {"fingerprint": 1})
    with pytest.raises(InputError, match="fingerprint must be text"):
        features.read_embeddings(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"not a complete \.npy file"):
        features.read_embeddings(declare(path))
    for content in (b"", b"no array", b"PK\x03\x04 and no more", pickle.dumps(EMBEDDING)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"e.npy: not a .npy file: numpy.save writes one"):
            features.read_embeddings(path)
    np.savez(declare(tmp_path / "e.npz"), EMBEDDING)
    with pytest.raises(InputError, match=r"must end in .npy, .parquet, .csv, .jsonl, got '.npz'"):
        features.read_embeddings(tmp_path / "e.npz")
    np.savez(tmp_path / "archive.npz", EMBEDDING)
    (tmp_path / "archive.npz").rename(path)
    with pytest.raises(InputError, match=r"not a \.npy file"):
        features.read_embeddings(path)
    ragged = declare(tmp_path / "e.parquet")
    pyarrow.parquet.write_table(pa.table({"embedding": [[1.0], [1.0, 2.0]]}), ragged)
    with pytest.raises(InputError, match="lists of one length, got 1 to 2"):
        features.read_embeddings(ragged)
    with pytest.raises(InputError, match="need a fingerprint"):
        features.Embeddings(EMBEDDING, "")
