"""Every embedding router and every loss on one training set: 79,424 golden battles and 1,500 MMLU questions.

    python experiments/embedding_routers.py DATA runs/embedding_routers

DATA as in ``mf_golden.py``. What each router needs to know (how much the 1,500 weigh, noise, neighbours, gamma) is
chosen by 5-fold cross-validation inside the 1,500: by the APGR of the win probabilities of all folds together. Those
win probabilities also fit the Platt calibration. The 12,537 other MMLU questions, GSM8K and MT-Bench are only tested
on. The folder gets ``cross_validation.md`` and ``comparison.md``.
About 25 minutes on two CPU cores once the prompts are encoded.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from mf_golden_mmlu1500 import GOLDEN, STRONG, WEAK, get_config

from routerjax import evaluation, metrics, scoring, training
from routerjax.atomic import new_directory
from routerjax.calibration import apply_calibration, fit_calibration
from routerjax.config import AttributeValue
from routerjax.data import (
    ROUTELLM_STRONG,
    ROUTELLM_WEAK,
    Benchmark,
    EmbeddedPrompts,
    Preferences,
    load_benchmark,
    smallest_by_hash,
)
from routerjax.families import find_family
from routerjax.features import EmbeddingCache, open_featurizer
from routerjax.likelihoods import READOUTS, make_likelihood
from routerjax.pipeline import load_preferences
from routerjax.prompts import prompt_ids

FOLDS = 5
CALIBRATED = ", calibrated"
GRIDS: dict[str, dict[str, tuple[AttributeValue, ...]]] = {
    "mf": {"weight": (20.0, 60.0, 200.0, 600.0), "noise_std": (0.05, 0.1, 0.2)},
    "knn": {"weight": (1.0, 20.0, 200.0), "k": (20, 50, 100, 200)},
    "sw query": {"weight": (1.0, 20.0, 200.0), "gamma": (10.0, 1e2, 1e3, 1e4, 1e6)},
    "sw train": {"weight": (1.0, 20.0, 200.0), "gamma": (10.0, 1e2, 1e3, 1e4, 1e6)},
}
# Losses that know ties take what Bradley-Terry chose: the same module, on the same battles.
TIE_LOSSES = ("rao_kupper", "davidson", "three_outcome")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A router to be trained: family, loss, and what cross-validation chooses."""

    name: str
    choice: dict[str, AttributeValue]
    loss: str = "bradley_terry"

    @property
    def family(self) -> str:
        return self.name.split()[0]

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        own = {name: value for name, value in self.choice.items() if name != "weight"}
        # In tiers, the routed pair would be of one.
        return {**own, "normalize": self.name.split()[1], "num_tiers": 0} if self.family == "sw" else own


class Material:
    """Battles to train on, benchmarks to test on, and the folds of the 1,500."""

    def __init__(self, root: Path) -> None:
        config = get_config()
        data = dataclasses.replace(config.data, root=str(root), golden=(dataclasses.replace(GOLDEN, weight=1.0),))
        self.config = dataclasses.replace(config, data=data)
        self.battles = load_preferences(self.config.data)
        benchmarks = {name: load_benchmark(name, root / GOLDEN.root) for name in ("mmlu", "gsm8k", "mt_bench")}
        self.golden, rest = smallest_by_hash(benchmarks["mmlu"], GOLDEN.num_prompts or 0)
        self.label = evaluation.preference_label(self.golden, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK)
        self.tests = {**benchmarks, "mmlu": rest}
        tested = (prompt for test in self.tests.values() for prompt in test.prompts)
        self.prompts = list(dict.fromkeys([*self.battles.prompts, *tested]))
        order = np.random.default_rng(0).permutation(sorted(self.golden.prompts))
        fold_of = dict(zip(order, itertools.cycle(range(FOLDS))))
        self.golden_fold = np.asarray([fold_of[prompt] for prompt in self.golden.prompts])
        # Of each battle; -1 for those that are in no fold.
        self.fold = np.asarray([fold_of.get(prompt, -1) for prompt in self.battles.prompts])


class Workbench(Material):
    """Material with embeddings, and the fit of a setting."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        with EmbeddingCache() as cache:
            self.featurizer = open_featurizer(self.config.features)
            embedding = self.featurizer.query(self.prompts, cache=cache)["embedding"]
        self.embedded = EmbeddedPrompts(self.prompts, embedding)

    def win_prob(self, setting: Setting, train: np.ndarray, tests: list[tuple[str, ...]]) -> Iterator[np.ndarray]:
        """By readout, the win probabilities of each list of prompts after training on the battles at ``train``."""
        weight = self.battles.weight * np.where(self.fold >= 0, setting.choice["weight"], 1.0).astype(np.float32)
        battles: Preferences = dataclasses.replace(self.battles, weight=weight).select(train)
        batch = self.embedded.batch(battles)
        family, likelihood = find_family(setting.family), make_likelihood(setting.loss)
        num_outputs = len(likelihood.output_names(battles.models))
        module = family.make_module(num_outputs=num_outputs, attributes=setting.attributes, featurizer=self.featurizer)
        if not family.trains:
            variables = {"memory": family.remember(module, batch, battles.models)}
        else:
            variables = training.fit(
                module, batch, likelihood=likelihood, optimizer=self.config.optimizer, training=self.config.training
            ).variables
        columns = {"strong": battles.models.index(STRONG), "weak": battles.models.index(WEAK)}
        for prompts in tests:
            embedding = jnp.asarray(self.embedded.rows(prompts))
            query = {"embedding": embedding, "prompt_id": jnp.asarray(prompt_ids(prompts))}
            found = {}
            for readout in READOUTS if setting.loss != "bradley_terry" else ("half_tie",):
                likelihood = make_likelihood(setting.loss, readout=readout)
                score = scoring.make_score_fn(module, **columns, likelihood=likelihood)
                found[readout] = np.concatenate(
                    [
                        np.asarray(score(variables, {name: leaf[start : start + 1024] for name, leaf in query.items()}))
                        for start in range(0, len(prompts), 1024)
                    ]
                ).astype(np.float64)
            yield found

    def out_of_fold(self, setting: Setting) -> dict[str, np.ndarray]:
        """Win probabilities of the 1,500, each after training on the battles of all prompts outside its fold."""
        found: dict[str, np.ndarray] = {}
        for own in range(FOLDS):
            rows = np.flatnonzero(self.golden_fold == own)
            prompts = tuple(self.golden.prompts[row] for row in rows)
            for readout, values in next(iter(self.win_prob(setting, self.fold != own, [prompts]))).items():
                found.setdefault(readout, np.empty(len(self.golden_fold)))[rows] = values
        return found


def apgr(win_prob: np.ndarray, benchmark: Benchmark) -> float:
    curve = metrics.cost_quality_curve(win_prob, benchmark.quality[ROUTELLM_STRONG], benchmark.quality[ROUTELLM_WEAK])
    return metrics.apgr(curve)


def cross_validate(bench: Workbench, lines: list[str]) -> list[Setting]:
    """The best setting of each router."""
    chosen = []
    for name, grid in GRIDS.items():
        tried = []
        for values in itertools.product(*grid.values()):
            setting = Setting(name, dict(zip(grid, values, strict=True)))
            win_prob = bench.out_of_fold(setting)["half_tie"]
            tried.append((apgr(win_prob, bench.golden), setting))
            said = ", ".join(f"{key} {value:g}" for key, value in setting.choice.items())
            lines.append(f"| {name} | {said} | {tried[-1][0]:.4f} | {metrics.log_loss(win_prob, bench.label):.4f} |")
            print(lines[-1], flush=True)
        chosen.append(max(tried, key=lambda one: one[0])[1])
    mf = chosen[0]
    return [mf, *(Setting(f"mf {loss}", mf.choice, loss) for loss in TIE_LOSSES), *chosen[1:]]


def main(data_root: str, output: str) -> None:
    bench = Workbench(Path(data_root))
    lines = ["| router | setting | APGR, out of fold | log-loss |", "|---|---|---|---|"]
    settings = cross_validate(bench, lines)
    win_prob: dict[str, dict[str, np.ndarray]] = {name: {} for name in bench.tests}
    held_out: dict[str, np.ndarray] = {}
    for setting in settings:
        out_of_fold = bench.out_of_fold(setting)
        maps = {
            readout: fit_calibration(values, bench.label, method="platt") for readout, values in out_of_fold.items()
        }
        held_out |= {called(setting, readout): values for readout, values in out_of_fold.items()}
        scored = bench.win_prob(
            setting, np.ones(len(bench.battles), bool), [own.prompts for own in bench.tests.values()]
        )
        for name, found in zip(bench.tests, scored, strict=True):
            for readout, values in found.items():
                win_prob[name][called(setting, readout)] = values
                calibrated = apply_calibration(maps[readout], jnp.asarray(values, jnp.float32))
                win_prob[name][called(setting, readout) + CALIBRATED] = np.asarray(calibrated, np.float64)
        print(setting, flush=True)
    with new_directory(output) as folder:
        chosen = out_of_fold_table(held_out, bench.golden)
        (folder / "cross_validation.md").write_text("\n".join(lines) + "\n\n" + chosen)
        (folder / "comparison.md").write_text(comparison(win_prob, bench.tests))


def called(setting: Setting, readout: str) -> str:
    return setting.name if readout == "half_tie" else f"{setting.name}, {readout}"


def out_of_fold_table(win_prob: dict[str, np.ndarray], golden: Benchmark) -> str:
    """What cross-validation says of the chosen settings, with intervals over the 1,500, paired against mf."""
    result = evaluation.evaluate(win_prob, golden, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK)
    lines = ["| router | APGR, out of fold | APGR - mf, paired | log-loss |", "|---|---|---|---|"]
    for router, own in sorted(result.routers.items(), key=lambda item: -(item[1].apgr.value or 0.0)):
        paired = "" if router == "mf" else interval(result.minus(router, "mf"))
        lines.append(f"| {router} | {interval(own.apgr)} | {paired} | {own.log_loss.value:.4f} |")
    return "\n".join(lines) + "\n"


def comparison(win_prob: dict[str, dict[str, np.ndarray]], tests: dict[str, Benchmark]) -> str:
    """A table for each benchmark: figures with intervals, paired against kNN, and log-loss raw and calibrated."""
    lines = []
    for name, benchmark in tests.items():
        pair = {"strong": ROUTELLM_STRONG, "weak": ROUTELLM_WEAK}
        result = evaluation.evaluate({**win_prob[name], **evaluation.control_win_probs(benchmark, **pair)}, benchmark)
        lines += [f"**{name}: {len(benchmark)} prompts**", ""]
        lines += ["| router | APGR | APGR - kNN, paired | CPT(50 %) | CPT(80 %) | log-loss | calibrated |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for router, own in sorted(result.routers.items(), key=lambda item: -(item[1].apgr.value or 0.0)):
            if router.endswith(CALIBRATED):
                continue
            calibrated = result.routers.get(router + CALIBRATED)
            cells = [
                router,
                interval(own.apgr),
                "" if router == "knn" else interval(result.minus(router, "knn")),
                *(interval(own.cpt[target]) for target in (0.5, 0.8)),
                f"{own.log_loss.value:.3f}",
                "" if calibrated is None else f"{calibrated.log_loss.value:.3f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def interval(figure: evaluation.Figure) -> str:
    value = "not reached" if figure.value is None else f"{figure.value:.3f}"
    return f"{value} [{figure.low:.3f}, {figure.high:.3f}]"


if __name__ == "__main__":
    main(*sys.argv[1:])
