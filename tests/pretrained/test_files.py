"""Folders that others made: nothing outside of them is read, nothing that never ends, and no more than is needed."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import pytest

from routerjax import InputError, load_router, save_router
from routerjax.features import load_encoder
from routerjax.pretrained import MINILM, file_sha256, files, find_file, locate, read_bytes, routellm
from tests.encoders import save_tiny_encoder
from tests.routers import forge, tiny_router, tiny_text_router


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_rsa"
    path.parent.mkdir()
    path.write_text("the user's own")
    return path


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "weights", []
    digest = hashlib.file_digest

    def counted(*arguments: object) -> object:
        reads.append(arguments)
        return digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    path.write_bytes(b"one")
    for content in (b"one", b"two"):  # of one size, within one tick of the file system's clock
        path.write_bytes(content)
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    before = len(reads)
    assert {file_sha256(path) for _ in range(3)} == {hashlib.sha256(b"two").hexdigest()}
    assert len(reads) == before + 1
    path.write_bytes(b"longer")
    os.utime(path, (0, 0))
    assert file_sha256(path) == hashlib.sha256(b"longer").hexdigest()


def test_links_count_inside_the_folder_alone(tmp_path: Path, secret: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "part").mkdir(parents=True)
    (folder / "file").write_text("content")
    (folder / "part" / "inside").symlink_to("../file")
    assert read_bytes(folder / "part" / "inside", folder=folder) == b"content"
    assert find_file(folder / "none") is None
    (tmp_path / "named").symlink_to(folder)  # what the user names may be a link
    assert read_bytes(tmp_path / "named" / "file") == b"content"
    (folder / "absolute").symlink_to(secret)
    (folder / "relative").symlink_to("../home/id_rsa")
    (folder / "around").symlink_to("absolute")
    (folder / "elsewhere").symlink_to(secret.parent)
    for name in ("absolute", "relative", "around", "elsewhere/id_rsa"):
        with pytest.raises(InputError, match=r"is a link to .*/home/id_rsa, outside of .*: refused"):
            read_bytes(folder / name, folder=folder)
    for name in ("../home/id_rsa", str(secret), "a\0b"):
        with pytest.raises(InputError, match=r"is not in .*: refused"):
            read_bytes(folder / name, folder=folder)
    (folder / "loop").symlink_to("loop")
    (folder / "nothing").symlink_to("none")
    for name in ("loop", "nothing"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_bytes(folder / name)


def test_only_regular_files_up_to_a_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"{name} is not a regular file"):
            read_bytes(tmp_path / name)
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a link to /dev/zero, outside"):
        read_bytes(tmp_path / "zero")
    (tmp_path / "large").write_bytes(b"1234")
    assert read_bytes(tmp_path / "large", max_bytes=4) == b"1234"
    with pytest.raises(InputError, match="is larger than 3 bytes"):
        read_bytes(tmp_path / "large", max_bytes=3)


def test_snapshots_of_the_hugging_face_cache_link_to_the_files_of_their_repository(tmp_path: Path) -> None:
    repository, other = tmp_path / "models--a--b", tmp_path / "models--a--c"
    for place in (repository, other):
        (place / "blobs").mkdir(parents=True)
        (place / "blobs" / "1").write_text(place.name)
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "part").mkdir(parents=True)
    (snapshot / "file").symlink_to("../../blobs/1")
    (snapshot / "part" / "file").symlink_to("../../../blobs/1")
    (snapshot / "other").symlink_to("../../../models--a--c/blobs/1")
    assert read_bytes(snapshot / "file") == b"models--a--b"
    assert read_bytes(snapshot / "part" / "file", folder=snapshot) == b"models--a--b"
    with pytest.raises(InputError, match="outside of"):
        read_bytes(snapshot / "other")


def test_a_router_brings_out_nothing_but_its_own_tokenizer(tmp_path: Path, secret: Path) -> None:
    save_router(tiny_text_router(tmp_path), tmp_path / "saved")
    tokenizer = tmp_path / "saved" / "featurizer"
    (tokenizer / "anything").symlink_to(secret)
    (tokenizer / "other.txt").write_text("not a tokenizer's")
    loaded = load_router(tmp_path / "saved")
    save_router(loaded.with_threshold(0.5), tmp_path / "published")
    assert {path.name for path in (tmp_path / "published" / "featurizer").iterdir()} == {"tokenizer.json"}
    (tokenizer / "vocab.txt").symlink_to(secret)
    hashes = json.loads((tmp_path / "saved" / "router.json").read_text())["files_sha256"]
    for name in ("../../home/id_rsa", str(secret)):
        forge(tmp_path / "saved", files_sha256={**hashes, name: "0" * 64})
        with pytest.raises(InputError, match=r"id_rsa' is not in .*: refused"):
            load_router(tmp_path / "saved")
    forge(tmp_path / "saved", files_sha256={**hashes, "vocab.txt": "0" * 64})
    with pytest.raises(InputError, match=r"vocab.txt is a link to .*id_rsa, outside of"):
        load_router(tmp_path / "saved")
    forge(tmp_path / "saved", files_sha256=hashes)
    shutil.rmtree(tokenizer)
    (secret.parent / "tokenizer.json").write_text("{}")
    tokenizer.symlink_to(secret.parent)  # a whole folder of the user's
    with pytest.raises(InputError, match=r"tokenizer.json is a link to .*, outside of"):
        load_router(tmp_path / "saved")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"])
def test_encoders_read_no_files_of_others(tmp_path: Path, secret: Path, name: str) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(InputError, match=f"{name} is a link to .*id_rsa, outside of"):
        load_encoder(folder, max_length=32)
    if name != "1_Pooling/config.json":
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(InputError, match=f"{name} is not a regular file"):
            load_encoder(folder, max_length=32)


@pytest.mark.parametrize("shard", ["/dev/zero", "../home/id_rsa", "link"])
def test_shards_lie_in_their_folder(tmp_path: Path, secret: Path, shard: str) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    (folder / "model.safetensors").unlink()
    (folder / "link").symlink_to(secret)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(InputError, match=r"is not in .*: refused|is a link to .*, outside of"):
        load_encoder(folder, max_length=32)


def test_references_in_a_configuration_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{row}: &a{row} [*a{row - 1}, *a{row - 1}]" for row in range(1, 60)), "mf: *a59"]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"has references \(\*name\)"):
        routellm.read_config(path, "mf", routellm.MatrixFactorizationConfig)
    path.write_text("[" * 50_000)
    with pytest.raises(InputError, match="is not YAML of a RouteLLM configuration: it is nested too deeply"):
        routellm.read_config(path, "mf", routellm.MatrixFactorizationConfig)
    path.write_text("mf: [")
    with pytest.raises(InputError, match="is not YAML of a RouteLLM"):
        routellm.read_config(path, "mf", routellm.MatrixFactorizationConfig)


def test_a_folder_here_is_not_the_pinned_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_encoder(tmp_path / MINILM)
    assert locate(MINILM).resolve() != (tmp_path / MINILM).resolve()
    assert f"write ./{MINILM} for it" in caplog.text
    assert locate(f"./{MINILM}") == Path(MINILM)


def test_what_only_a_router_names_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def snapshot_download(name: str, **arguments: object) -> str:
        if not arguments.get("local_files_only"):
            requested.append(name)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    router = tiny_router(tmp_path)
    router = dataclasses.replace(router, featurizer=dataclasses.replace(router.featurizer, source="a-stranger/model"))
    with pytest.raises(InputError, match=r"not downloaded: get it first \(hf download a-stranger/model\), or .*--enc"):
        router.win_prob(["a prompt"])
    assert requested == []
    with pytest.raises(InputError, match="cannot find a-stranger/model"):
        router.featurizer.at("a-stranger/model").query(["a prompt"])
    assert requested == ["a-stranger/model"]
