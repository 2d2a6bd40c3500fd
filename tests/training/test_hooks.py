"""Rows of a run go to trackers, to the same run when it is resumed, and one that fails ends no training."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from routerjax import InputError, cli
from routerjax.training.hooks import TRACKERS, TrackedRun, mlflow_hook, wandb_hook

ROWS = ({"epoch": 1, "loss": 0.75}, {"epoch": 2, "loss": 0.5})
RUN_ID = "0123456789abcdef"


def tracked(directory: Path) -> TrackedRun:
    return TrackedRun("mine", RUN_ID, {"training": {"epochs": 2}, "data": {"golden": []}}, directory)


@pytest.mark.parametrize("name", cli.TRACKERS)
def test_a_tracker_that_is_missing_is_refused_before_the_work(
    name: str, arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["train", str(arena / "config.py"), "--output", str(tmp_path / "run"), "--log", name]) == 2
    assert f"--log {name} needs {name}, which is missing: pip install 'routerjax[{name}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_line_offers_all_trackers() -> None:
    assert set(cli.TRACKERS) == set(TRACKERS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--log", "wandb"], "--log changes nothing"),
        (["--profile", "1:2"], "training.profile changes nothing"),
        (["--set", "optimizer.moments_dtype=bfloat16"], "optimizer.moments_dtype changes nothing"),
    ],
)
def test_what_only_training_follows_is_refused_where_nothing_is_trained(
    setting: list[str],
    message: str,
    arena: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("routerjax.pipeline.train.require_tracker", lambda name: None)
    knn = ["--set", "router.family=knn", "router.attributes={'k': 5}"]
    assert cli.main(["train", str(arena / "config.py"), "--output", str(tmp_path / "run"), *knn, *setting]) == 2
    assert f"{message}, since knn trains nothing" in capsys.readouterr().err


FAKE_MLFLOW = """
def set_experiment(name): pass
def search_runs(**arguments): return []
def start_run(**arguments): pass
def log_params(params): pass
def log_metrics(metrics, step): raise ConnectionError("the server is away")
def end_run(status="FINISHED"): pass
"""


def test_a_service_that_is_away_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlflow.py").write_text(FAKE_MLFLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with caplog.at_level(logging.WARNING, "routerjax"), mlflow_hook(tracked(tmp_path)) as hook:
        hook(ROWS[0])
    monkeypatch.delitem(sys.modules, "mlflow")
    assert "MLflow did not take the row of epoch 1: the server is away" in caplog.text


@pytest.mark.trackers
def test_mlflow_has_the_rows_of_a_run_and_of_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "routers")
    import mlflow

    for row in ROWS:  # in two processes' stead
        with mlflow_hook(tracked(tmp_path)) as hook:
            hook(row)
    (run,) = mlflow.search_runs(experiment_names=["routers"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.75), (2, 0.5)]
    assert run.data.params == {"training.epochs": "2", "data.golden": "[]"}
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    with pytest.raises(ZeroDivisionError), mlflow_hook(tracked(tmp_path)):
        raise ZeroDivisionError
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    with pytest.raises(InputError, match="MLflow does not start: MlflowException: "), mlflow_hook(tracked(tmp_path)):
        pass


@pytest.mark.trackers
def test_weights_and_biases_has_the_rows_of_a_run_and_of_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for row in ROWS:
        with wandb_hook(tracked(tmp_path)) as hook:
            hook(row)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert folders
    assert all(folder.name.endswith(RUN_ID) for folder in folders)  # which wandb sync sends to one run
    stored = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.wandb"))
    assert b"loss" in stored
    assert b"0.75" in stored
    assert b"routerjax" in stored


@pytest.mark.trackers
def test_the_command_line_sends_a_run_to_both(arena: Path, tmp_path: Path) -> None:
    environment = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'store'}"}
    environment |= {"MLFLOW_ALLOW_FILE_STORE": "true"}
    run = tmp_path / "run"
    command = [sys.executable, "-m", "routerjax.cli", "train", arena / "config.py", "--output", run]
    subprocess.run([*command, "--log", "wandb", "--log", "mlflow"], check=True, env={**os.environ, **environment})
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    assert list((run / "training" / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
    (losses,) = (tmp_path / "store").rglob("metrics/loss")
    rows = [json.loads(line) for line in (run / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [float(line.split()[1]) for line in losses.read_text().splitlines()] == [row["loss"] for row in rows]
