"""Tables of the routers of ``causal_router.py`` beside those on frozen embeddings.

    python experiments/causal_comparison.py DATA runs/causal_router sw=runs/sw_golden_mmlu1500/router

DATA as in ``mf_golden.py``. Matrix factorisation, nearest neighbours and ridge regression are fitted here, on MiniLM's
embeddings and on Gemma's frozen features, with the settings that ``embedding_routers.py`` and ``causal_router.py``
chose; other routers are folders, as NAME=FOLDER. The causal routers are the means of the win probabilities of three
seeds, and each of them. The folder gets ``comparison.md``.
"""

import sys
from pathlib import Path

import numpy as np
from causal_router import RIDGES, log_loss, ridge, ridge_out_of_fold
from embedding_routers import Setting, Workbench, interval

from routerjax import evaluation, load_router
from routerjax.data import ROUTELLM_STRONG, ROUTELLM_WEAK, EmbeddedPrompts
from routerjax.features import EmbeddingCache, GivenFeaturizer

MF = {"weight": 60.0, "noise_std": 0.1}
SETTINGS = (
    Setting("mf", MF),
    Setting("mf three_outcome", MF, loss="three_outcome"),
    Setting("knn", {"weight": 200.0, "k": 200}),
)
MAIN = "causal tokens 16"


def frozen(bench: Workbench, encoder: str) -> dict[str, dict[str, np.ndarray]]:
    """Win probabilities of the routers on frozen embeddings, by benchmark."""
    everything = np.ones(len(bench.battles), bool)
    prompts = [test.prompts for test in bench.tests.values()]
    win_prob: dict[str, dict[str, np.ndarray]] = {name: {} for name in bench.tests}
    for setting in SETTINGS:
        scored = bench.win_prob(setting, everything, prompts)
        for name, readouts in zip(bench.tests, scored, strict=True):
            win_prob[name][f"{setting.name}, {encoder}"] = readouts["half_tie"]
    train = bench.embedded.rows(bench.golden.prompts)
    penalty = min(RIDGES, key=lambda each: log_loss(ridge_out_of_fold(train, bench, each), bench.golden))
    for name, test in bench.tests.items():
        win_prob[name][f"ridge, {encoder}"] = ridge(train, bench.label, bench.embedded.rows(test.prompts), penalty)
    return win_prob


def main(data_root: str, run: Path, folders: dict[str, Path]) -> None:
    bench = Workbench(Path(data_root))
    win_prob = frozen(bench, "MiniLM")
    stored = np.load(run / "win_prob.npz")
    embedding = np.load(run / "features.npy").astype(np.float32)
    bench.embedded = EmbeddedPrompts(bench.prompts, embedding)
    bench.featurizer = GivenFeaturizer(source="Gemma", width=embedding.shape[1], fingerprint="frozen")
    for name, of_gemma in frozen(bench, "Gemma").items():
        win_prob[name] |= of_gemma
    routers = sorted({key.split(" seed ")[0] for key in stored.files if " seed " in key})
    with EmbeddingCache() as cache:
        for name, test in bench.tests.items():
            for router in routers:
                seeds = {
                    key.split(",")[0]: stored[key]
                    for key in stored.files
                    if key.startswith(f"{router} seed ") and key.endswith(f", {name}")
                }
                win_prob[name] |= {router: np.mean(list(seeds.values()), axis=0), **seeds}
            for router, folder in folders.items():
                values = load_router(folder).win_prob(test.prompts, cache=cache, exclude_own_battles=True)
                win_prob[name][router] = values.astype(np.float64)
    lines = []
    for name, benchmark in bench.tests.items():
        pair = {"strong": ROUTELLM_STRONG, "weak": ROUTELLM_WEAK}
        result = evaluation.evaluate({**win_prob[name], **evaluation.control_win_probs(benchmark, **pair)}, benchmark)
        lines += [f"**{name}: {len(benchmark)} prompts**", ""]
        lines += [f"| router | APGR | APGR - mf on MiniLM | {MAIN} - APGR | CPT(50 %) | CPT(80 %) | log-loss |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for router, figures in sorted(result.routers.items(), key=lambda item: -(item[1].apgr.value or 0.0)):
            pairs = (router, "mf, MiniLM"), (MAIN, router)
            paired = " | ".join(
                "" if first == second else interval(result.minus(first, second)) for first, second in pairs
            )
            cpt = " | ".join(interval(figures.cpt[target]) for target in (0.5, 0.8))
            lines.append(f"| {router} | {interval(figures.apgr)} | {paired} | {cpt} | {figures.log_loss.value:.4f} |")
        lines.append("")
    (run / "comparison.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), {name: Path(path) for name, path in (one.split("=") for one in sys.argv[3:])})
