"""Packages that one feature needs are extras: one line says which is missing, before the work."""

import ast
import json
import logging
import re
import sys
import tomllib
from pathlib import Path

import pytest

from routerjax import InputError, data
from routerjax.cli import main
from routerjax.evaluation import html_report, plot_curves
from routerjax.training.metrics_log import MetricsLog

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {
    "report": "matplotlib", "hub": "datasets", "tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow",
}  # fmt: skip


def install(extra: str) -> str:
    return re.escape(f"pip install 'routerjax[{extra}]'")


def test_extras_are_no_dependencies_and_are_imported_where_they_are_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, package in EXTRAS.items():
        assert [re.split("-skinny|[<>=]", entry)[0] for entry in project["optional-dependencies"][extra]] == [package]
        assert not any(entry.startswith(package) for entry in project["dependencies"])
    for path in (ROOT / "routerjax").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(EXTRAS.values()), path


@pytest.mark.parametrize("command", [("evaluate", "router", "--benchmark", "mmlu"), ("demo",)])
def test_no_evaluation_begins_without_its_report(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    message = f"the report of an evaluation needs matplotlib, which is missing: {install('report')}"
    assert re.fullmatch(f"routerjax: error: {message}\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    for draw in (lambda: plot_curves([], tmp_path / "a.png"), lambda: html_report([])):
        with pytest.raises(InputError, match=install("report")):
            draw()


def test_a_data_set_of_the_hub_asks_for_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=f"'owner/battles', .* needs datasets, which is missing: {install('hub')}"):
        data.read_preferences("owner/battles")


def test_a_run_needs_no_tensorboard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with caplog.at_level(logging.INFO), MetricsLog(tmp_path / "training", []) as log:
        log.write({"epoch": 1, "loss": 0.5})
    assert re.search(f"no TensorBoard files: .*{install('tensorboard')}", caplog.text)
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["metrics.jsonl"]
    assert json.loads((tmp_path / "training" / "metrics.jsonl").read_text()) == {"epoch": 1, "loss": 0.5}
