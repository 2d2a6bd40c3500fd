"""Several processes learn what one learns, go on with each other's runs, and end together."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from routerjax import InputError, distributed, pipeline
from routerjax.cli import main
from routerjax.errors import PreemptedError
from routerjax.training.interrupt import Interrupt
from routerjax.training.run import Position, Run
from tests.arena import CONFIG
from tests.training import one_of_several

# ROUTERJAX_TEST_STEPS=20 compares longer curves, and of all families, for which two cores need many minutes: devices
# that share a core wait for each other in every collective.
STEPS = int(os.environ.get("ROUTERJAX_TEST_STEPS", "4"))
ALL = ["mf", "bert_pmap", "bert_mesh", "causal"]
FAMILIES = {2: ["mf", "causal"], 4: ["mf"]} if STEPS == 4 else {2: ALL, 4: ALL}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(commands: Sequence[Sequence[object]], folder: Path) -> list[subprocess.Popen]:
    """Processes that run at the same time; what each writes is in a file of its own."""
    started = []
    for index, command in enumerate(commands):
        with (folder / f"log{index}").open("a") as log:
            started.append(
                subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
            )
    return started


def statuses(processes: Sequence[subprocess.Popen], timeout: float) -> list[int]:
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(max(0.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("host", 1, 0), "--coordinator must be HOST:PORT, with a port from 1 to 65535, got 'host'"),
        (("", 1, 0), "--coordinator must be HOST:PORT"),
        (("host:abc", 1, 0), "--coordinator must be HOST:PORT"),
        (("host:0", 1, 0), "--coordinator must be HOST:PORT"),
        (("host:65536", 1, 0), "--coordinator must be HOST:PORT"),
        (("host:12345", 0, 0), "--num-processes must be 1 or more, got 0"),
        (("host:12345", 2, 2), "--process-id must be from 0 to 1, got 2"),
        (("host:12345", 2, -1), "--process-id must be from 0 to 1, got -1"),
    ],
)
def test_a_place_that_no_process_can_have_is_refused(place: tuple[str, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        distributed.join(*place)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = rf"cannot listen on port {port} \(Address already in use\): give all processes a free one"
        with pytest.raises(InputError, match=message):
            distributed.join(f"127.0.0.1:{port}", 2, 0)


def test_processes_of_other_settings_are_refused_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    store: dict[str, str] = {}

    class Client:
        key_value_set = staticmethod(store.__setitem__)

        def blocking_key_value_get(self, key: str, timeout: int) -> str:
            del timeout
            number, index = key.split("/")[1:]
            return store.get(key) or json.dumps(
                {"seed": int(index) // 2, "batch": 8} if number != "0" else {"batch": 8}
            )

    parted = []
    monkeypatch.setattr(distributed, "_client", Client)
    monkeypatch.setattr(distributed, "_numbers", itertools.count())
    monkeypatch.setattr(distributed, "leave", lambda: parted.append(True))
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
    distributed.require_alike({"batch": 8})
    assert not parted
    for index, seed in enumerate((0, 0, 1)):
        monkeypatch.setattr(distributed.jax, "process_index", lambda index=index: index)
        with pytest.raises(InputError, match="process 2 differs from process 0 in seed: start all processes with one"):
            distributed.require_alike({"seed": seed, "batch": 8})
    assert parted == [True] * 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, this one, on 8 devices."""
    output = tmp_path_factory.mktemp("alone")
    one_of_several.train(output, set(FAMILIES[2]), STEPS)
    return output


def losses(output: Path) -> dict[str, list[float]]:
    return json.loads((output / "losses.json").read_text())


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_learn_what_one_learns_and_go_on_with_its_runs(
    count: int, alone: Path, tmp_path: Path
) -> None:
    names = FAMILIES[count]
    if names[1:]:
        one_of_several.train(tmp_path, {names[-1]}, STEPS, epochs=1)  # it begins here; the others begin there
    port = free_port()
    command = [sys.executable, "-m", "tests.training.one_of_several", f"127.0.0.1:{port}", count]
    processes = start([[*command, index, STEPS, tmp_path, *names] for index in range(count)], tmp_path)
    assert statuses(processes, 60 * STEPS) == [0] * count, (tmp_path / "log0").read_text()
    for name in names:
        np.testing.assert_allclose(losses(tmp_path)[name], losses(alone)[name], rtol=1e-5)
    one_of_several.train(tmp_path, {"mf"}, STEPS)  # one process reads what several wrote
    np.testing.assert_allclose(losses(tmp_path)["mf"], losses(alone)["mf"], rtol=1e-5)


def test_a_lost_process_and_a_preempted_one_end_the_others_and_the_run_goes_on_bit_for_bit() -> None:
    script = Path(__file__).parents[2] / "experiments" / "bench" / "kills.py"
    size = ["--processes", "2", "--epochs", "20", "--prompts", "60"]
    finished = subprocess.run(
        [sys.executable, script, *size, "--kinds", "SIGTERM", "one is lost"],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("| 2 | 1 SIGTERM; 1 one is lost ")


def test_processes_look_for_preemption_equally_often_while_they_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    validated, calls = [], []
    monkeypatch.setattr(distributed, "is_preempted", lambda call: calls.append(call) or call > 4)
    monkeypatch.setattr(distributed, "summed", lambda sums: sums)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    run = SimpleNamespace(
        validation=SimpleNamespace(num_batches=5, in_order=lambda: range(5)),
        validation_sums=lambda variables, batch: (validated.append(batch), 1.0)[1:] * 2,
        wrapper=SimpleNamespace(computes_together=False),
        position=Position(), state=SimpleNamespace(variables={}), checkpoints=True,
        training=SimpleNamespace(keep_best=1),
    )  # fmt: skip
    for index, share in enumerate(([0, 2, 4], [1, 3])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        validated.clear()
        calls.clear()
        interrupt = Interrupt()
        Run.validate(run, interrupt)
        assert (validated, calls) == (share, [1, 2, 3])
        with pytest.raises(PreemptedError):
            Run.validate(run, interrupt)
        assert calls == [1, 2, 3, 4, 5]


def test_a_preempted_process_parts_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preempted(*_: object, **__: object) -> None:
        raise PreemptedError

    left = []
    monkeypatch.setattr(pipeline, "train_router", preempted)
    monkeypatch.setattr(distributed, "leave", lambda: left.append(True))
    (tmp_path / "config.py").write_text(CONFIG.format(root="", encoder=""))
    assert main(["train", str(tmp_path / "config.py"), "--output", str(tmp_path / "run")]) == 75
    assert left == [True]


def test_arguments_of_a_cluster_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "config.py", "--output", "run", "--coordinator", "127.0.0.1:1"]
    assert main(train) == 2
    assert "--coordinator, --num-processes and --process-id go with --distributed" in capsys.readouterr().err
    finished = subprocess.run(
        [sys.executable, "-m", "routerjax.cli", *train, "--distributed"],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert "go together, or are found by JAX" in finished.stderr
