"""The cache with two processes at once, with a killed one, and damaged."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError
from routerjax.features import EmbeddingCache
from routerjax.features.cache import cache_folder
from routerjax.prompts import prompt_sha256

WRITER = """
import sys, numpy as np
from routerjax.features import EmbeddingCache
from routerjax.features.cache import cache_folder
from routerjax.prompts import prompt_sha256
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with EmbeddingCache(path) as cache:
    for number in range(count):
        rows = {f"{name} {number} {row}".encode(): np.full(8, number, np.float32) for row in range(20)}
        cache.put("f", rows)
        print(number, flush=True)
"""


def start_writer(path: Path, name: str, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writers = [start_writer(path, name, 20) for name in ("a", "b")]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    keys = [f"{name} {number} {row}".encode() for name in "ab" for number in range(20) for row in range(20)]
    with EmbeddingCache(path) as cache:
        cached = cache.get("f", keys)
    assert len(cached) == 800
    np.testing.assert_array_equal(cached[b"b 7 3"], np.full(8, 7))


def test_a_new_cache_that_several_open_at_once_keeps_what_each_adds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for round_number in range(60):
        path, barrier = tmp_path / f"{round_number}.sqlite", threading.Barrier(6)

        def add(number: int, path: Path = path, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            with EmbeddingCache(path) as cache:
                cache.put("f", {str(number).encode(): np.full(3, number, np.float32)})

        threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with EmbeddingCache(path) as cache:
            assert len(cache.get("f", [str(number).encode() for number in range(6)])) == 6, caplog.text


def test_a_killed_process_leaves_whole_groups(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writer = start_writer(path, "a", 100_000)
    with writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 5:
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
    with EmbeddingCache(path) as cache:
        for number in range(6):
            assert len(cache.get("f", [f"a {number} {row}".encode() for row in range(20)])) == 20
        cache.put("f", {b"later": np.zeros(8, np.float32)})
        groups = [len(cache.get("f", [f"a {n} {row}".encode() for row in range(20)])) for n in range(5000)]
    assert set(groups) <= {0, 20}


def keys(count: int) -> list[bytes]:
    return [prompt_sha256(f"prompt {row}") for row in range(count)]


def rows(count: int) -> dict[bytes, np.ndarray]:
    return {key: np.full(8, row + 1, np.float32) for row, key in enumerate(keys(count))}


def filled(path: Path, count: int = 30) -> Path:
    with EmbeddingCache(path) as cache:
        cache.put("f", rows(count))
    return path


def test_a_file_that_is_no_cache_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"certainly not a database" * 100)
    with EmbeddingCache(path) as cache, pytest.raises(InputError, match=r"is damaged .*remove that file"):
        cache.get("f", keys(1))
    assert path.read_bytes().startswith(b"certainly")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rows SET content = zeroblob(32) WHERE prompt = ?",
        "UPDATE rows SET content = substr(content, 1, 31) WHERE prompt = ?",
        "UPDATE rows SET content = 5 WHERE prompt = ?",
        "UPDATE rows SET checksum = NULL WHERE prompt = ?",
        # That of another prompt, checksum and all.
        "REPLACE INTO rows SELECT o.fingerprint, ?, o.content, o.checksum FROM rows o "
        "WHERE o.content = (SELECT max(content) FROM rows) LIMIT 1",
    ],
)
def test_a_row_that_changed_is_made_anew_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = filled(tmp_path / "cache.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(damage, (keys(30)[0],)).rowcount == 1
    with EmbeddingCache(path) as cache:
        assert set(cache.get("f", keys(30))) == set(keys(30)[1:])
        assert "1 rows of the cache" in caplog.text
        cache.put("f", rows(1))
        caplog.clear()
        assert len(cache.get("f", keys(30))) == 30
        assert caplog.text == ""


def test_readings_are_kept_beside_embeddings_and_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path / "cache.sqlite")
    readings = {key: bytes([row]) for row, key in enumerate(keys(30))}
    with EmbeddingCache(path) as cache:
        assert cache.read("g", keys(30)) == {}
        cache.write("g", readings)
        assert cache.read("g", keys(30)) == readings
        assert len(cache.get("f", keys(30))) == 30
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE rows SET content = x'01' WHERE fingerprint = 'g' AND prompt = ?", (keys(1)[0],))
    with EmbeddingCache(path) as cache:
        assert set(cache.read("g", keys(30))) == set(keys(30)[1:])
    assert "1 rows of the cache" in caplog.text


def test_flipped_bits_never_change_an_embedding(tmp_path: Path) -> None:
    content = filled(tmp_path / "cache.sqlite").read_bytes()
    rng = np.random.default_rng(0)
    answered = 0
    for trial in range(60):
        bits = bytearray(content)
        for place in rng.integers(4096, len(content), size=20):
            bits[place] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{trial}.sqlite"
        path.write_bytes(bits)
        with EmbeddingCache(path) as cache, contextlib.suppress(InputError):
            for key, embedding in cache.get("f", keys(30)).items():
                np.testing.assert_array_equal(embedding, rows(30)[key])
                answered += 1
    assert 0 < answered < 60 * 30


def test_threads_share_a_cache(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.put(f"f{number}", rows(20)), range(40)))
        counts = pool.map(lambda number: len(cache.get(f"f{number}", keys(20))), range(40))
        assert set(counts) == {20}


def test_a_cache_is_opened_when_it_is_needed(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "none" / "cache.sqlite"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a folder", "in a file"])
def test_a_cache_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    path = tmp_path / "cache.sqlite"
    path.mkdir() if kind == "a folder" else path.write_text("")
    path = path if kind == "a folder" else path / "inner.sqlite"
    with EmbeddingCache(path) as cache:
        cache.put("f", rows(3))
        assert cache.get("f", keys(3)) == {}
    assert caplog.text.count("embeddings are not kept; set ROUTERJAX_CACHE to a folder that can be written") == 1


def test_a_cache_that_can_only_be_read_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, connect = filled(tmp_path / "cache.sqlite"), sqlite3.connect
    # As SQLite opens a file whose permissions allow no more, which are nothing to root.
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)
    )
    before = path.read_bytes()
    with EmbeddingCache(path) as cache:
        assert len(cache.get("f", keys(40))) == 30
        cache.put("f", rows(40))
        assert len(cache.get("f", keys(40))) == 30
    assert path.read_bytes() == before
    assert caplog.text.count("cannot be written to") == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ROUTERJAX_CACHE": "~/mine"}, "HOME/mine"),
        ({"ROUTERJAX_CACHE": "/there", "XDG_CACHE_HOME": "/xdg"}, "/there"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/routerjax"),
        ({"XDG_CACHE_HOME": "relative"}, "HOME/.cache/routerjax"),
        ({}, "HOME/.cache/routerjax"),
    ],
)
def test_where_caches_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("ROUTERJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == expected.replace("HOME", str(tmp_path))


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ROUTERJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with EmbeddingCache() as cache:
        cache.put("f", rows(1))
        assert cache.get("f", keys(1)) == {}
    assert (
        "of this user cannot be written to (no folder for caches: Could not determine home directory.)" in caplog.text
    )
