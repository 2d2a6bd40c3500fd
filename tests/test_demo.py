"""Every step of the demo, on a smaller arena and encoder than its own; `make demo` runs the real ones."""

import functools
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from routerjax import InputError, demo, load_router
from routerjax.config import FeatureConfig
from routerjax.data import simulate_arena
from tests.encoders import save_tiny_encoder

ROOT = Path(__file__).resolve().parents[1]


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    encoder = str(save_tiny_encoder(tmp_path / "encoder"))
    monkeypatch.setattr(demo, "FeatureConfig", functools.partial(FeatureConfig, encoder=encoder, max_length=48))
    monkeypatch.setattr(demo, "simulate_arena", functools.partial(simulate_arena, num_prompts=150, num_test_prompts=50))
    demo.run_demo(output, seed=3)
    assert sorted(os.listdir(output)) == ["arena", "bundle", "calibrated", "evaluation", "mf"]
    printed = capsys.readouterr().out
    assert [line[0] for line in printed.splitlines() if line[1:3] == ". "] == list("123456")
    # Every path that it names exists.
    named = {word.rstrip(":;,") for word in printed.split() if word.startswith(f"{output}/")}
    assert {path for path in named if not Path(path).exists()} == set()
    assert len(named) >= 6

    router = load_router(output / "calibrated")
    scored = [line.split(maxsplit=3) for line in printed.splitlines() if " -> sim-" in line]
    expected = router.win_prob(demo.QUESTIONS)
    assert [line[3] for line in scored] == list(demo.QUESTIONS)
    for (shown, _, model, _), win_prob in zip(scored, expected, strict=True):
        assert math.isclose(float(shown), win_prob, abs_tol=6e-4)
        assert model == (router.strong if win_prob >= router.threshold else router.weak)
    results = json.loads((output / "evaluation" / "results.json").read_text())
    assert set(results["benchmarks"][0]["routers"]) == {"mf", "knn", "random", "constant", "oracle"}

    mending = rf"{output} exists already; .*: rm -r {output}, or .*--output DIR \(make demo DEMO_OUTPUT=DIR\)"
    with pytest.raises(InputError, match=mending):
        demo.run_demo(output)


@pytest.mark.skipif(shutil.which("make") is None, reason="this system has no make")
def test_make_demo_writes_where_it_is_told() -> None:
    made = ["make", "--dry-run", "--old-file=.venv/.installed", "VENV=.venv", "demo"]
    # Not the settings of a make that runs this test.
    environment = {"PATH": os.environ["PATH"]}
    for setting, output in (([], "demo_output"), (["DEMO_OUTPUT=other"], "other")):
        printed = subprocess.run([*made, *setting], cwd=ROOT, env=environment, capture_output=True, check=True).stdout
        assert printed.decode() == f".venv/bin/routerjax demo --output {output}\n"
