"""Checkpoints: what is read is what was written, bit for bit, or it is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from routerjax import InputError
from routerjax.training import Checkpoints

EXAMPLE = {"kernel": jnp.zeros((3, 40)), "half": jnp.zeros((5,), jnp.bfloat16), "step": jnp.int32(0)}
TREES = {number: jax.tree.map(lambda leaf, n=number: leaf + n, EXAMPLE) for number in (1, 2)}
NOTE = {"history": [{"loss": 0.1}], "identity": {"name": "é", "patience": None}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for number, tree in TREES.items():
            checkpoints.save(number, {"tree": tree}, NOTE)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoints")


def restored(folder: Path) -> int:
    """Number of the checkpoint that is restored, which is what was written, or InputError."""
    with Checkpoints(folder) as checkpoints:
        number, trees, note = checkpoints.restore({"tree": EXAMPLE})
        assert checkpoints.read_note() == note
    jax.tree.map(np.testing.assert_array_equal, trees["tree"], TREES[number])
    assert [leaf.dtype for leaf in jax.tree.leaves(trees)] == [leaf.dtype for leaf in jax.tree.leaves(EXAMPLE)]
    assert note == NOTE
    return number


def test_the_newest_comes_back_as_it_was(folder: Path) -> None:
    assert restored(folder) == 2


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << place % 8
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"bit flipped at {p} %": lambda content, p=p: flipped(content, len(content) * p // 100) for p in (0, 10, 50, 90)
    },
    "cut in half": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "emptied": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line_or_changes_nothing(
    folder: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    messages = []
    for path in sorted(path for path in (folder / "2").rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(DAMAGES[damage](content))
        try:
            assert restored(folder) == 2
        except InputError as error:
            messages.append(str(error))
        path.write_bytes(content)
    assert messages
    for message in messages:
        assert message.startswith(f"checkpoint 2 in {folder} cannot be restored (")
        assert message.endswith(f"to go on from checkpoint 1, remove {folder / '2'}")
        assert "\n" not in message
        assert "tensorstore_spec" not in message
    assert capfd.readouterr().err == ""
    shutil.rmtree(folder / "2")
    assert restored(folder) == 1


def test_a_damaged_note_is_refused_without_its_tree(folder: Path) -> None:
    (path,) = (path for path in (folder / "2" / "note").rglob("*") if b'"content"' in path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(InputError, match=r"checkpoint 2 in .* cannot be restored .*bits changed on the disk"),
    ):
        checkpoints.read_note()


def test_exchanged_checkpoints_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "2" / "tree")
    shutil.copytree(folder / "1" / "tree", folder / "2" / "tree")
    with pytest.raises(InputError, match=r"bits changed on the disk.*: to go on from checkpoint 1, remove"):
        restored(folder)


def test_a_half_written_checkpoint_is_refused(folder: Path) -> None:
    (folder / "7" / "tree").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"checkpoint 7 in .* cannot be restored .*: to go on from checkpoint 2, remove"
    ):
        restored(folder)
    for number in "12":
        shutil.rmtree(folder / number)
    with pytest.raises(InputError, match=r"cannot be restored .*: to begin anew, remove .*7"):
        restored(folder)


def test_what_a_killed_writer_left_is_removed(folder: Path) -> None:
    (folder / "3.orbax-checkpoint-tmp" / "tree.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restored(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_writing_one_takes_no_part_in_how_processes_agree_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", calls.append)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1000, {"tree": {"a": np.zeros(2)}}, {})
    assert calls == []


def test_what_a_kept_checkpoint_has_chosen_is_kept_as_long(tmp_path: Path) -> None:
    def save(number: int, chosen: set[int], kept: list[int]) -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(number, {"tree": EXAMPLE}, {}, chosen=chosen)
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept

    save(1, {1}, [1])
    save(2, {1}, [1, 2])
    save(3, {1}, [1, 2, 3])
    save(4, {4}, [1, 3, 4])  # whoever goes back to the third finds what it calls the best
    save(5, {4}, [4, 5])
