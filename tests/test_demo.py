"""Every step of the demo, on a smaller arena and encoder than its own; `make demo` runs the real ones."""

import functools
import json
import math
import os
from pathlib import Path

import pytest

from routerjax import InputError, demo, load_router
from routerjax.config import FeatureConfig
from routerjax.data import simulate_arena
from tests.encoders import save_tiny_encoder


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    encoder = str(save_tiny_encoder(tmp_path / "encoder"))
    monkeypatch.setattr(demo, "FeatureConfig", functools.partial(FeatureConfig, encoder=encoder, max_length=48))
    monkeypatch.setattr(demo, "simulate_arena", functools.partial(simulate_arena, num_prompts=150, num_test_prompts=50))
    demo.run_demo(output, seed=3)
    assert sorted(os.listdir(output)) == ["arena", "bundle", "calibrated", "evaluation", "mf"]
    said = capsys.readouterr().out
    assert [line[0] for line in said.splitlines() if line[1:3] == ". "] == list("123456")
    # Every path that it names exists.
    named = {word.rstrip(":;,") for word in said.split() if word.startswith(f"{output}/")}
    assert {path for path in named if not Path(path).exists()} == set()
    assert len(named) >= 6

    router = load_router(output / "calibrated")
    scored = [line.split(maxsplit=3) for line in said.splitlines() if " -> sim-" in line]
    expected = router.win_prob(demo.QUESTIONS)
    assert [line[3] for line in scored] == list(demo.QUESTIONS)
    for (shown, _, model, _), win_prob in zip(scored, expected, strict=True):
        assert math.isclose(float(shown), win_prob, abs_tol=6e-4)
        assert model == (router.strong if win_prob >= router.threshold else router.weak)
    results = json.loads((output / "evaluation" / "results.json").read_text())
    assert set(results["benchmarks"][0]["routers"]) == {"mf", "knn", "random", "constant", "oracle"}

    with pytest.raises(InputError, match="exists already"):
        demo.run_demo(output)
