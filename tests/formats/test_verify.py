"""``routerjax verify``: one line of what was compared, or of what differs."""

import json
import shutil
from pathlib import Path

import pytest

from routerjax import formats
from routerjax.cli import main
from routerjax.runtime import SCHEMA
from tests.bundles import forge
from tests.encoders import TEXTS
from tests.routers import tiny_router


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    formats.export(tiny_router(folder, threshold=0.5), folder / "bundle", "stablehlo", prompts=TEXTS)
    return folder / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def refusal(bundle: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["verify", str(bundle)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_what_was_compared_is_one_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle)]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    count = len(json.loads((bundle / "bundle.json").read_text())["sha256"])
    assert f"verified: stablehlo, sha256 of {count} files, scores and win_prob of {len(TEXTS)} prompts from_" in line
    assert line.endswith(", and the same models\n")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "router.safetensors", "golden.npz", "README.md", "routerjax_runtime.py"]
)
def test_a_changed_byte_is_refused(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert f"{name} is damaged: its sha256 is not that in bundle.json" in refusal(bundle, capsys)


def test_another_policy_and_other_schemas_are_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / "bundle.json"
    text = path.read_text()
    content = json.loads(text)
    path.write_text(json.dumps({**content, "policy": {**content["policy"], "threshold": 0.25}}))
    assert "bundle.json was changed after routerjax wrote it" in refusal(bundle, capsys)
    path.write_text(text)
    forge(bundle, schema=SCHEMA + 1)
    assert f"has the schema {SCHEMA + 1}, newer than {SCHEMA}" in refusal(bundle, capsys)
    forge(bundle, schema=SCHEMA - 1)
    assert f"expected schema {SCHEMA}" in refusal(bundle, capsys)


def test_other_outputs_are_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tolerance = dict.fromkeys(("from_embedding", "from_token_ids", "from_text"), -1.0)
    forge(bundle, tolerance=tolerance)
    assert "from_embedding differs from the golden scores by" in refusal(bundle, capsys)
    text = json.loads((bundle / "bundle.json").read_text())["text"]
    forge(bundle, text={**text, "prefix": "a"})
    assert "from_text reads other tokens than the router did" in refusal(bundle, capsys)


def test_what_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "bundle.json is missing, or no regular file; export makes it" in refusal(tmp_path, capsys)
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "none"), str(tmp_path / "file")):
        assert main(["verify", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert ": expected a bundle, as routerjax export writes it" in line


def test_an_option_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "router", "--format", "hf", "--output", "out", "--set", "max_shard_size=1GB"]
    assert main([*command, "max_shard_size=2GB"]) == 2
    assert "--set has 'max_shard_size' twice, with different values" in capsys.readouterr().err
