"""The cache with two processes at once, with a killed one, and damaged."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError
from routerjax.features import EmbeddingCache

WRITER = """
import sys, numpy as np
from routerjax.features import EmbeddingCache
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
        found = cache.get("f", keys)
    assert len(found) == 800
    np.testing.assert_array_equal(found[b"b 7 3"], np.full(8, 7))


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


def test_a_file_that_is_no_cache_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(InputError, match=r"is damaged .*remove that file"):
        EmbeddingCache(path)
    assert path.read_bytes().startswith(b"certainly")


def test_a_folder_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").mkdir()
    with pytest.raises(OSError, match="set ROUTERJAX_CACHE"):
        EmbeddingCache(tmp_path / "cache.sqlite")
