"""Weights in files go onto a mesh part by part: the host never holds them twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "experiments" / "bench" / "sharded_loading.py"


def test_the_host_holds_weights_once_while_they_go_onto_a_mesh() -> None:
    # So that what is freed counts as freed; beyond 32 MB at a time, as in larger models, it does anyway.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(SCRIPT), "--width", "512", "--layers", "12"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["a device's part of the token table"] == 0.125
    assert 190 < figures["model"] < figures["growth"] < figures["bound"], figures
