"""Hypothesis strategies of folders that somebody else made: one file of a good folder changed, damaged or replaced."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.tables import damaged

SECRET = "the content of a file that is not in the folder"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2, 10**9, 10**12, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "x", "mf", "knn", "sim-small", "inf", "NaN", "../..", "/etc/passwd", "/dev/zero", "\u202ex"]),
    st.text(max_size=10),
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=4
)


def changed_copy(data: st.DataObject, source: Path, target: Path, keep: str = "") -> Path:
    """A copy of a folder with one or two of its files changed, ``keep`` not; beside it lies a file ``secret``."""
    shutil.copytree(source, target)
    (target.parent / "secret").write_text(SECRET)
    for _ in range(data.draw(st.integers(1, 2), label="changed files")):
        files = sorted(path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
        files = [path for path in files if path.name != keep]
        if files:
            file = data.draw(st.sampled_from(files), label="file")
            _change(data, file, target)
    return target


def _change(data: st.DataObject, file: Path, folder: Path) -> None:
    kinds = ["bytes", "bytes", "delete", "folder", "link", "outer link", "fifo", "device", "extra link"]
    if file.suffix == ".json":
        kinds += ["value"] * 8 + ["key", "nested"]
    if file.suffix == ".safetensors":
        kinds += ["header"] * 4
    kind = data.draw(st.sampled_from(kinds), label="change")
    if kind == "bytes":
        file.write_bytes(damaged(data, file.read_bytes()))
    elif kind == "value":
        content = json_content(file)
        if isinstance(content, (dict, list)) and content:
            _replace_value(data, content)
            file.write_text(json.dumps(content), encoding="utf-8")
    elif kind == "header":
        _change_header(data, file)
    elif kind == "key":
        content = json_content(file)
        if isinstance(content, dict):
            content[data.draw(st.text(max_size=8), label="new key")] = data.draw(json_values, label="its value")
            file.write_text(json.dumps(content), encoding="utf-8")
    elif kind == "nested":
        file.write_text("[" * 100_000)
    elif kind == "extra link":
        (file.parent / "notes.txt").unlink(missing_ok=True)
        (file.parent / "notes.txt").symlink_to(folder.parent / "secret")
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "link":
            file.symlink_to(folder.parent / "secret")
        elif kind == "outer link":
            file.symlink_to(os.path.relpath("/etc/passwd", file.parent))
        elif kind == "fifo":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")


def _change_header(data: st.DataObject, file: Path) -> None:
    """Say another name, type, shape or place of a tensor, in a file whose length is as it should be."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:  # changed before
        return
    if isinstance(header, dict) and header:
        _replace_value(data, header)
        changed = json.dumps(header).encode()
        file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])


def json_content(file: Path) -> object:
    """Content of a file; None where it is not JSON any more."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # changed before
        return None


def _replace_value(data: st.DataObject, content: dict | list) -> None:
    """Replace one value, at any depth."""
    while True:
        keys = sorted(content) if isinstance(content, dict) else range(len(content))
        key = data.draw(st.sampled_from(list(keys)), label="at")
        inner = content[key]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.integers(0, 3), label="deeper"):
            content = inner
            continue
        content[key] = data.draw(json_values, label="new value")
        return


def leaks(folder: Path) -> bool:
    """Return True if a file in ``folder`` holds what lies outside of the stranger's folder."""
    return any(
        path.is_file() and (SECRET.encode() in path.read_bytes() or b"root:x:0:0" in path.read_bytes())
        for path in folder.rglob("*")
    )
