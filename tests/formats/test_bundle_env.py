"""A bundle needs no package but those that its program names."""

import json
import re
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

from routerjax import formats
from routerjax.formats.stablehlo import StableHlo
from tests.bundles import PROGRAM
from tests.encoders import TEXTS
from tests.routers import tiny_router

README = Path(__file__).parents[2] / "README.md"


def requirements(program: Path) -> list[str]:
    """Read the requirements of a program's inline metadata (PEP 723)."""
    (block,) = re.findall(r"(?m)^# /// script$\n((?:^#(?:| .*)$\n)+?)^# ///$", program.read_text())
    return tomllib.loads(re.sub(r"(?m)^# ?", "", block))["dependencies"]


def test_the_readme_names_them_too() -> None:
    names = [re.match(r"[\w-]+", text).group() for text in StableHlo.requirements]
    assert f"`pip install {' '.join(names)}`" in README.read_text()


@pytest.mark.fresh_env
def test_a_bundle_works_where_only_they_are_installed(tmp_path: Path) -> None:
    formats.export(tiny_router(tmp_path, threshold=0.5), tmp_path / "bundle", "stablehlo", prompts=TEXTS)
    program = tmp_path / "bundle" / PROGRAM
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    install = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements(program)]
    subprocess.run(install, check=True)

    def run(*arguments: str) -> str:
        finished = subprocess.run([python, "-I", str(program), *arguments], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    assert set(json.loads(run("--verify"))["largest_difference"]) == {"from_embedding", "from_token_ids", "from_text"}
    assert [json.loads(line)["prompt"] for line in run(*TEXTS).splitlines()] == list(TEXTS)
