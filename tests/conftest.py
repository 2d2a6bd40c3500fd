"""Eight host devices for every test, before JAX starts; shape mistakes and warnings are errors."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1" and importlib.metadata.version("jax").startswith("0.10."):
    # Halves the time that XLA takes to compile. Later versions do not know it, and abort.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
if os.environ.get("JAX_PLATFORMS") != "cuda,cpu":  # of `make gpu-check`
    os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

# A program that several tests compile is compiled once: by xdist's workers, and by the processes that tests start, too.
# Each run of the suite begins with none, so that nothing is owed to an earlier one.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="routerjax-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jax
import pytest

# The first example of a property compiles; that is not slowness. The examples are the same in every run: a failure is
# of the change that is tested.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
# A shell that starts the suite in the background has it ignore Ctrl-C, and the processes that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory):
    """No test writes embeddings to the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROUTERJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install(entry_points, **modules)``: another package, for this process and those that it starts."""

    def install(entry_points: str, **modules: str) -> None:
        site = tmp_path / "site"
        information = site / "another-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(entry_points)
        for name, source in modules.items():
            (site / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)

    return install


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``tests.arena.save_arena`` fills, with a ``run`` of it and that run's router ``calibrated``."""
    from routerjax.cli import main
    from tests.arena import save_arena

    folder = tmp_path_factory.mktemp("arena")
    save_arena(folder)
    run, battles = str(folder / "run"), str(folder / "battles.parquet")
    assert main(["train", str(folder / "config.py"), "--output", run]) == 0
    calibrate = ["calibrate", run, "--prompts", battles, "--strong-share", "0.3"]
    assert main([*calibrate, "--output", str(folder / "calibrated")]) == 0
    return folder
