"""Tokens from the cache are those of the tokenizer, whatever happened to its file or its folder."""

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers

from routerjax.features import TextTokenizer, load_tokens, tokenize_once
from tests.encoders import TEXTS, save_tiny_encoder

ANEW = "is not as it was written (its checksum differs); made anew"
NOT_KEPT = "token ids are not kept; set ROUTERJAX_CACHE to a folder that can be written"
PROMPTS = [f"{TEXTS[row % 3]} {row}" * (row % 4) for row in range(40)]  # empty ones too


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return load_tokens(save_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder"), max_length=16).tokenizer


def tokenize(tokenizer: TextTokenizer, folder: Path | None, prompts: list[str] = PROMPTS) -> list[list[int]]:
    return [token_ids.tolist() for token_ids in tokenize_once(tokenizer, prompts, folder=folder)]


def written(tokenizer: TextTokenizer, folder: Path, prompts: list[str] = PROMPTS) -> Path:
    tokenize(tokenizer, folder, prompts)
    (file,) = folder.iterdir()
    return file


def test_token_ids_from_the_cache_are_those_of_the_tokenizer(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    prompts = [f"{TEXTS[row % 3]} {row}" * (row % 4) for row in range(3000)]  # several parts
    expected = tokenizer.token_ids(prompts)
    for _ in range(2):
        assert tokenize(tokenizer, tmp_path, prompts) == expected
    assert tokenize_once(tokenizer, [], folder=tmp_path) == []


def test_flipped_bits_never_change_the_tokens(
    tokenizer: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tokenizer, tmp_path)
    expected, content = tokenizer.token_ids(PROMPTS), file.read_bytes()
    for place in range(0, len(content), 11):
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        caplog.clear()
        assert tokenize(tokenizer, tmp_path) == expected
        assert f"{file} {ANEW}" in caplog.text
        assert file.read_bytes() == content
    caplog.clear()
    assert tokenize(tokenizer, tmp_path) == expected
    assert ANEW not in caplog.text


def tokens_of_two_rows_exchanged(tokenizer: TextTokenizer, file: Path) -> None:
    content = bytearray(file.read_bytes())
    first, second = (content.index(np.asarray(ids, np.int32).tobytes()) for ids in tokenizer.token_ids(PROMPTS[1:3]))
    tokens = slice(first, first + 20), slice(second, second + 20)
    content[tokens[0]], content[tokens[1]] = content[tokens[1]], content[tokens[0]]
    file.write_bytes(content)


def cut_short(tokenizer: TextTokenizer, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def emptied(tokenizer: TextTokenizer, file: Path) -> None:
    file.write_bytes(b"")


def of_other_prompts(tokenizer: TextTokenizer, file: Path) -> None:
    other = written(tokenizer, file.parent / "other", PROMPTS[::-1])
    other.rename(file)
    other.parent.rmdir()


def beyond_the_vocabulary(tokenizer: TextTokenizer, file: Path) -> None:
    token_ids = pa.array([[10**6]] * len(PROMPTS), pa.list_(pa.int32()))
    table = pa.table({"token_ids": token_ids, "is_cut": [False] * len(PROMPTS)})
    with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


DAMAGES = (tokens_of_two_rows_exchanged, cut_short, emptied, of_other_prompts, beyond_the_vocabulary)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_file_that_changed_is_made_anew_and_said(
    tokenizer: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage
) -> None:
    file = written(tokenizer, tmp_path)
    content = file.read_bytes()
    damage(tokenizer, file)
    assert file.read_bytes() != content
    for expected in (1, 0):  # the second time it is whole again
        caplog.clear()
        assert tokenize(tokenizer, tmp_path) == tokenizer.token_ids(PROMPTS)
        assert caplog.text.count(f"{file} {ANEW}") == expected


def test_another_version_of_the_library_tokenises_anew(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0", "2.0"):
        monkeypatch.setattr(tokenizers, "__version__", version)
        tokenize(tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["no home", "in a file", "a folder of its name"])
def test_a_cache_that_cannot_be_made_is_a_warning(
    tokenizer: TextTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    folder = tmp_path / "tokens"
    if kind == "no home":
        for name in ("ROUTERJAX_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", "/dev/null")
        folder = None
    elif kind == "in a file":
        folder.write_text("")
    else:
        file = written(tokenizer, folder)
        file.unlink()
        file.mkdir()
    assert tokenize(tokenizer, folder) == tokenizer.token_ids(PROMPTS)
    assert caplog.text.count(NOT_KEPT) == 1


def test_a_full_disk_is_a_warning_and_leaves_nothing(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_batch", full)
    assert tokenize(tokenizer, tmp_path) == tokenizer.token_ids(PROMPTS)
    assert "No space left on device" in caplog.text
    assert NOT_KEPT in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_only_be_read_is_read(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tokenizer, tmp_path)
    monkeypatch.setattr(TextTokenizer, "read", None)
    tmp_path.chmod(0o555)
    try:
        assert tokenize(tokenizer, tmp_path)[1]
    finally:
        tmp_path.chmod(0o755)
    assert NOT_KEPT not in caplog.text
