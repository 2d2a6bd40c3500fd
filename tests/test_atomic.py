import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from routerjax.atomic import atomic_file, new_directory
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
