"""A family, a featurizer and a likelihood that one module of another package defines go all the way: train, evaluate,
calibrate, save, load in a fresh process, export."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from routerjax import InputError, data, families, load_router, save_router
from routerjax.cli import main
from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    FeatureConfig,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
)
from routerjax.families import find_family
from routerjax.formats import export
from routerjax.pipeline import train_router
from tests.routers import tiny_router

PACKAGE = """
import dataclasses
import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from routerjax.config import Count
from routerjax.families import Family
from routerjax.features import Featurizer
from routerjax.likelihoods import Likelihood


class TwoLayers(nn.Module):
    num_models: int
    hidden: Count = 16

    @nn.compact
    def __call__(self, query):
        hidden = nn.tanh(nn.Dense(self.hidden, name="hidden")(query["embedding"]))
        shift = self.variable("fixed", "shift", jnp.full, (1, self.num_models), 0.5).value
        return nn.Dense(self.num_models, name="scores")(hidden) + shift


def depths(params):
    return {"hidden": {"kernel": 1, "bias": 1}, "scores": {"kernel": None, "bias": None}}


PERCEPTRON = Family(name="perceptron", module=TwoLayers, parameter_groups=depths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashedNGrams(Featurizer):
    kind = "ngrams"

    width: Count = 64
    size: Count = 3
    source = "character n-grams"

    @property
    def fingerprint(self):
        return f"{self.size}-grams in {self.width}"

    def query(self, prompts, *, cache=None, progress=False):
        rows = np.zeros((len(prompts), self.width), np.float32)
        for row, prompt in enumerate(prompts):
            for start in range(max(1, len(prompt) - self.size + 1)):
                digest = hashlib.sha256(prompt[start : start + self.size].encode()).digest()
                rows[row, int.from_bytes(digest[:4], "big") % self.width] += 1
        return {"embedding": rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)}


class Scaled(Likelihood):
    name = "scaled"

    def initial_params(self):
        return {"slope": jnp.ones(())}

    def log_prob(self, params, scores, sides):
        margin = scores[sides.query_index, sides.model_a] - scores[sides.query_index, sides.model_b]
        margin = params["slope"] * margin
        return jax.nn.log_softmax(jnp.stack([margin, jnp.zeros_like(margin), -margin], axis=-1))
"""
ENTRY_POINTS = """
[routerjax.families]
perceptron = mine:PERCEPTRON
[routerjax.featurizers]
ngrams = mine:HashedNGrams
[routerjax.likelihoods]
scaled = mine:Scaled
"""
SCORE = "import sys; from routerjax import load_router; print(load_router(sys.argv[1]).win_prob(['prove it']).tolist())"


@pytest.fixture
def site(install: Callable[..., None]) -> None:
    """The package is installed."""
    install(ENTRY_POINTS, mine=PACKAGE)


@pytest.mark.usefixtures("site")
def test_train_evaluate_calibrate_save_load_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arena = data.simulate_arena(num_prompts=150, num_test_prompts=60, seed=0)
    data.write_preferences(arena.preferences, tmp_path / "battles.parquet")
    data.write_benchmark_table(arena.benchmark, tmp_path / "benchmark.parquet")
    strong, weak = "sim-large", "sim-small"
    config = ExperimentConfig(
        data=DataConfig(root=str(tmp_path), battles=(BattleSource(path="battles.parquet"),)),
        features=FeatureConfig(featurizer="ngrams", attributes={"width": 32}),
        router=RouterConfig(family="perceptron", attributes={"hidden": 8}, loss="scaled", strong=strong, weak=weak),
        optimizer=OptimizerConfig(learning_rate=0.01, frozen_layers=1),
        training=TrainingConfig(epochs=2),
    )
    router = train_router(config, tmp_path / "run")
    folder = str(tmp_path / "run" / "router")
    assert router.variables["likelihood"]["slope"] != 1.0
    start = find_family("perceptron").start(router.module, router.featurizer, jax.random.key(config.training.init_seed))
    params = router.variables["params"]
    np.testing.assert_array_equal(params["hidden"]["kernel"], start["params"]["hidden"]["kernel"])
    assert np.abs(params["scores"]["kernel"] - start["params"]["scores"]["kernel"]).max() > 0
    np.testing.assert_array_equal(router.variables["fixed"]["shift"], start["fixed"]["shift"])
    loaded = load_router(folder)
    assert (loaded.module, loaded.featurizer, loaded.likelihood) == (
        router.module,
        router.featurizer,
        router.likelihood,
    )
    expected = router.win_prob(["prove it"])
    finished = subprocess.run([sys.executable, "-c", SCORE, folder], capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(np.float32(eval(finished.stdout)), expected)
    pair = ["--strong", strong, "--weak", weak]
    benchmark = str(tmp_path / "benchmark.parquet")
    evaluated = ["evaluate", str(tmp_path / "run"), "--benchmark", benchmark, *pair, "--samples", "20"]
    assert main([*evaluated, "--output", str(tmp_path / "evaluation")]) == 0
    shared = ["--prompts", benchmark, "--strong-share", "0.5", "--output", str(tmp_path / "calibrated")]
    assert main(["calibrate", folder, *shared]) == 0
    assert main(["export", str(tmp_path / "calibrated"), "--format", "stablehlo", "--output", str(tmp_path / "b")]) == 0
    assert "from_embedding: win probabilities and scores differ" in capsys.readouterr().out


def test_a_module_of_ones_own_scores_without_registration_and_is_saved_with_it(tmp_path: Path) -> None:
    class Linear(nn.Module):
        """A dense layer, which need not know `deterministic`."""

        num_models: int

        @nn.compact
        def __call__(self, query: dict) -> jax.Array:
            return nn.Dense(self.num_models)(query["embedding"])

    made = tiny_router(tmp_path)
    module = Linear(num_models=3)
    variables = families.initial_variables(module, made.featurizer, jax.random.key(0))
    router = dataclasses.replace(made, module=module, variables=variables)
    assert router.win_prob(["prove it", "a poem"]).shape == (2,)
    with pytest.raises(InputError, match="Linear is of no registered family"):
        save_router(router, tmp_path / "saved")
    assert export(router, tmp_path / "bundle", "stablehlo")["from_text"] <= 1e-5
