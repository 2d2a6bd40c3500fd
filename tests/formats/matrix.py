"""Families x formats: a router of each family, 50 prompts, and a process that has a bundle and no routerjax."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from routerjax import Router, formats
from routerjax.data import simulate_arena
from routerjax.families import find_family
from routerjax.policies import CostAware, route_by_cost
from routerjax.prompts import prompt_ids
from routerjax.typing import PreferenceBatch
from tests.routers import NAMES, tiny_router, tiny_text_router

ATTRIBUTES: Mapping[str, Mapping[str, int]] = {"sw": {"num_tiers": 0}, "knn": {"k": 5}, "clusters": {"num_clusters": 4}}
FAMILIES = ("mf", "sw", "knn", "clusters", "bert", "causal")
BLOCKED = {"stablehlo": ("routerjax",), "onnx": ("routerjax", "jax"), "triton": ("routerjax", "jax")}
BLOCKED = {**BLOCKED, "vector": ("routerjax", "jax", "onnxruntime", "tokenizers")}

USER = """
import sys
for name in sys.argv[3:]:
    sys.modules[name] = None  # any import of it fails
sys.path.insert(0, sys.argv[1])
import json
from routerjax_runtime import load
bundle = load(sys.argv[1])
request = json.load(open(sys.argv[2]))
outputs = {name: output.tolist() for name, output in bundle.outputs(**request["query"]).items()}
thresholds = request["thresholds"]
decisions = [bundle.route(threshold=each, **request["query"]) for each in thresholds]
print(json.dumps({"outputs": outputs, "decisions": decisions, "differences": bundle.verify()}))
"""


def prompts() -> list[str]:
    """Fifty prompts: of the simulated arena, empty ones, of other languages, a long one, and half an emoji."""
    texts = simulate_arena(num_prompts=40, num_test_prompts=1, seed=1).preferences.unique_prompts
    strange = [
        "",
        "   \n",
        "¿Qué es la vida?",
        "素数が無限にあることを証明せよ",
        "أثبت أن",
        "докажи теорему",
        "prove 😀 this",
    ]
    return [*texts[:40], *strange, "half an emoji \ud83d", "primes are infinite " * 500, "A" * 10_000]


def make_router(family: str, folder: Path) -> Router:
    """A router of tiny random weights that reads text, with a threshold at the median win probability."""
    router = tiny_text_router(folder, family=family) if find_family(family).reads_text else tiny_router(folder)
    if family in ATTRIBUTES:
        module = find_family(family).make_module(
            num_outputs=len(NAMES), attributes=dict(ATTRIBUTES[family]), featurizer=router.featurizer
        )
        memory = find_family(family).remember(module, _battles(router), NAMES)
        router = dataclasses.replace(router, module=module, variables={"memory": memory})
    thresholds = between(router.win_prob(prompts()))
    return router.with_threshold(thresholds[len(thresholds) // 2])


def _battles(router: Router) -> PreferenceBatch:
    texts, rng = (
        [f"prove that {number} primes are infinite {number % 7}" for number in range(60)],
        np.random.default_rng(0),
    )
    model_a = rng.integers(3, size=300)
    return PreferenceBatch(
        query={"embedding": router.featurizer.query(texts)["embedding"], "prompt_id": prompt_ids(texts)},
        query_index=rng.integers(len(texts), size=300),
        model_a=model_a,
        model_b=(model_a + rng.integers(1, 3, size=300)) % 3,
        outcome=np.eye(3, dtype=np.float32)[rng.integers(3, size=300)],
        weight=np.ones(300, np.float32),
    )


def between(win_prob: np.ndarray, count: int = 9) -> list[float]:
    """Thresholds that lie in the widest gaps between win probabilities, in order."""
    distinct = np.unique(win_prob.astype(np.float64))
    widest = np.sort(np.argsort(-np.diff(distinct))[:count])
    return [float(distinct[place] + distinct[place + 1]) / 2 for place in widest]


def cost_aware(router: Router) -> Router:
    """Copy with a policy whose costs, higher for better models, send prompts to two models about as often."""
    scores = router.scores(prompts())
    rank = np.argsort(np.argsort(scores.mean(axis=0)))

    def shares(weight: float) -> list[float]:
        chosen = np.argmax(scores - weight * (1.0 + rank), axis=1)
        return sorted(np.bincount(chosen, minlength=len(NAMES)) / len(scores))

    # For each pair, the weight at which half of the prompts prefer either.
    pairs = [(first, second) for first in range(len(NAMES)) for second in range(first)]
    even = [np.median((scores[:, i] - scores[:, j]) / (rank[i] - rank[j])) for i, j in pairs]
    weight = max(even, key=lambda each: shares(each)[-2])
    cost = dict(zip(router.models, (1.0 + rank).tolist(), strict=True))
    return dataclasses.replace(router, policy=CostAware(cost, float(weight)))


def differences(router: Router, folder: Path, format: str, options: Mapping[str, object] | None = None) -> dict:
    """Export, ask the bundle in a process of its own about the 50 prompts, and compare with the router.

    Returns:
        ``win_prob`` and ``scores``: the largest difference; ``decisions``: how many of those at nine thresholds, of the
        policy and of costs differ, but for prompts that lie nearer to a threshold than the tolerance; ``bytes``.

    Raises:
        InputError: the format does not hold the router.
    """
    formats.export(router, folder, format, prompts=prompts()[-8:], options=options)
    texts, has_text = prompts(), format != "vector"
    query = {"prompts": texts} if has_text else {"embedding": router.featurizer.query(texts)["embedding"].tolist()}
    thresholds = between(router.win_prob(texts)) if router.has_pair else []
    request = folder.with_name(f"{folder.name}_request.json")
    request.write_text(json.dumps({"query": query, "thresholds": thresholds}))
    command = [sys.executable, "-I", "-c", USER, str(folder), str(request), *BLOCKED[format]]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    outputs = {name: np.asarray(output) for name, output in answer["outputs"].items()}
    description = json.loads((folder / "bundle.json").read_text())
    tolerance = max(description["tolerance"].values())
    result: dict = {"tolerance": tolerance, "bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())}
    wrong, scores = 0, router.scores(texts)
    if "scores" in outputs:
        result["scores"] = float(np.abs(outputs["scores"] - scores).max() / max(1.0, np.abs(scores).max()))
    if router.has_pair:
        win_prob = router.win_prob(texts)
        result["win_prob"] = float(np.abs(outputs["win_prob"] - win_prob).max())
        for threshold, names in zip(
            [router.threshold, *thresholds], [_names(router, outputs), *answer["decisions"]], strict=True
        ):
            is_near = np.abs(win_prob - threshold) <= tolerance
            expected = np.where(win_prob >= threshold, router.strong, router.weak)
            wrong += int(((np.asarray(names) != expected) & ~is_near).sum())
    else:
        cost = np.asarray([router.policy.cost[model] for model in router.models])
        utility = scores - router.policy.cost_weight * cost
        ordered = np.sort(utility, axis=1)
        is_near = ordered[:, -1] - ordered[:, -2] <= 4 * tolerance * max(1.0, float(np.abs(scores).max()))
        expected = np.asarray(router.route(texts))
        assert len(set(expected)) > 1
        wrong += int(((np.asarray(_names(router, outputs)) != expected) & ~is_near).sum())
        chosen = np.asarray(route_by_cost(outputs["scores"], cost, router.policy.cost_weight))
        wrong += int(((np.asarray(NAMES)[chosen] != expected) & ~is_near).sum())
    return {**result, "decisions": wrong}


def _names(router: Router, outputs: Mapping[str, np.ndarray]) -> Sequence[str]:
    return [router.models[column] for column in outputs["model"]]


def _environment() -> dict[str, str]:
    """Without what makes JAX of the tests eight devices."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
