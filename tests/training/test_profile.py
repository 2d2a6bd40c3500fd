"""A trace of a run's steps holds these steps and no others, in files that TensorBoard and Perfetto open."""

import gzip
import json
from pathlib import Path

import pytest

from routerjax import InputError, cli, training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.models import MatrixFactorization
from tests.training.battles import NUM_MODELS, random_battles
from tests.training.test_finite import Streamed

BATTLES, MODULE = random_battles(), MatrixFactorization(num_models=NUM_MODELS, model_dim=8)


def fit(source: object, directory: Path | training.Resume | None, profile: str, **changes: int) -> training.FitResult:
    config = TrainingConfig(**{"epochs": 2, "batch_size": 16, "profile": profile} | changes)  # 7 steps an epoch
    return training.fit(MODULE, source, optimizer=OptimizerConfig(), training=config, directory=directory)


def traced_steps(folder: Path) -> list[int]:
    """First step of each call of the compiled step in a trace."""
    (made,) = (folder / "profile" / "plugins" / "profile").iterdir()
    assert list(made.glob("*.xplane.pb"))  # which TensorBoard reads
    with gzip.open(made / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]


def test_the_trace_holds_these_steps_and_no_others(tmp_path: Path) -> None:
    fit(Streamed(), tmp_path / "streamed", "2:4", epochs=1)
    assert traced_steps(tmp_path / "streamed") == [2, 3]
    fit(BATTLES, tmp_path / "resident", "6:9")  # the last of an epoch, two of the next
    calls = traced_steps(tmp_path / "resident")  # of one or more steps each
    assert {6, 7} <= set(calls) <= {6, 7, 8}


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("9:9", "training.profile must be START:STOP, steps with START < STOP, got '9:9'"),
        ("1-2", "must be START:STOP"),
        ("7:15", "training.profile=7:15 is beyond the run, which has 14 steps"),
    ],
)
def test_steps_that_the_run_has_not_are_refused(tmp_path: Path, profile: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(BATTLES, tmp_path, profile)


def test_steps_that_are_behind_a_resumed_run_are_refused(tmp_path: Path) -> None:
    fit(BATTLES, tmp_path, "6:7", epochs=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is behind the run, which goes on at step 7"):
        fit(BATTLES, training.Resume(tmp_path), "6:7", epochs=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trace_needs_a_folder() -> None:
    with pytest.raises(InputError, match="needs a folder to write into"):
        fit(BATTLES, None, "1:2")


def test_the_command_line_takes_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        "from routerjax.config import *\n"
        "def get_config(): return ExperimentConfig(data=DataConfig(), router=RouterConfig(strong='a', weak='b'))\n"
    )
    assert cli.main(["train", str(config), "--output", str(tmp_path / "run"), "--profile", "3"]) == 2
    assert "training.profile must be START:STOP" in capsys.readouterr().err
