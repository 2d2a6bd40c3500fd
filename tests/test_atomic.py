import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from routerjax.atomic import atomic_file, new_directory, refuse_existing
from routerjax.errors import InputError


def test_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.write_text("before")

    def fail() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["scores.json"]

    with atomic_file(target) as temporary:
        temporary.write_text("after")
    assert target.read_text() == "after"


def test_missing_parent_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"), atomic_file(tmp_path / "no" / "file"):
        pass


def test_folder_appears_whole_and_never_overwrites(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "router"
    with new_directory(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    with pytest.raises(InputError, match="exists already"), new_directory(target):
        pass
    assert os.listdir(target.parent) == ["router"]

    empty = tmp_path / "empty"
    empty.mkdir()
    with new_directory(empty) as temporary:
        (temporary / "a").write_text("2")
    assert (empty / "a").read_text() == "2"


def test_killed_writer_leaves_no_folder(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from routerjax.atomic import new_directory\n"
        "with new_directory(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    finished = subprocess.run([sys.executable, "-c", program, str(tmp_path / "router")], check=False)
    assert finished.returncode == -signal.SIGKILL
    assert not (tmp_path / "router").exists()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_directory(tmp_path / "folder") as folder, atomic_file(folder / "file") as file:
            file.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_two_writers_of_one_process_do_not_share_a_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as one, atomic_file(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert (tmp_path / "file").read_text() == "one"  # the one that was finished last
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("make", [atomic_file, new_directory])
def test_nothing_is_written_through_a_link_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda length: "guessed")
    (tmp_path / ".out.guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError), make(tmp_path / "out"):
        pytest.fail("entered")
    assert not (tmp_path / "victim").exists()


def test_the_name_is_on_the_disk_when_the_writer_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_file(tmp_path / "file") as file:
        file.write_text("x")
    assert flushed[-1] == str(tmp_path)
    with new_directory(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    assert flushed[-1] == str(tmp_path)
    assert {Path(path).name for path in flushed} >= {"inner", "file"}


@pytest.mark.parametrize(("path", "message"), [("/", "exists already"), ("a\0b", "a name cannot hold a NUL")])
def test_no_path_is_beyond_a_refusal(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message), new_directory(path):
        pass
    with pytest.raises(InputError, match=message):
        refuse_existing(Path(path))


def test_a_file_with_a_nul_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a name cannot hold a NUL"), atomic_file(tmp_path / "a\0b"):
        pass
