"""How near each benchmark lies to a training set, and what a router that learned from that set is worth there.

    python experiments/similarity_and_apgr.py DATA > experiments/results/similarity_and_apgr.md

DATA as in ``mf_golden.py``. RouteLLM's section 5.3 (arXiv 2406.18665) explains its routers' APGR by the similarity S of
benchmark and training set; this is the same table for golden battles and their parts. Routers are nearest neighbours
(k = 50) in MiniLM embeddings, which need no training. The 1,500 MMLU questions are those of ``mf_golden_mmlu1500.py``;
MMLU is measured on the others. Prompts contaminated by ANY of the training sets are left out for all of them, so that a
column compares the same questions.

Found: the 1,500 MMLU questions bring MMLU's S from .48 to .57 and its APGR from .51 to .60, about as the paper's golden
labels do. Over all ten training sets the rank correlation of S and APGR is not distinguishable from none on any
benchmark; the sets differ in size and in the pair of models that their labels compare, too.

The first run encodes about 29,000 prompts (5 minutes on two cores, cached afterwards); the rest takes half a minute.
"""

import datetime
import os
import sys
from pathlib import Path

import numpy as np
from mf_golden import get_config
from mf_golden_mmlu1500 import GOLDEN, STRONG, WEAK
from scipy.stats import spearmanr

from routerjax import data
from routerjax.evaluation import Figure, evaluate
from routerjax.families import KNN
from routerjax.features import EmbeddingCache, open_featurizer
from routerjax.policies import Threshold
from routerjax.router import Router
from routerjax.tables import read_table

BENCHMARKS = ("mmlu", "gsm8k", "mt_bench")
# Nearly all of it is GSM8K's test questions with an instruction after them, which the overlap column does not mark and
# a cosine of 0.95 finds half of.
GSM8K_IN_DISGUISE = "llmrouter-agentverse-mgsm"
# Part of the golden battles -> (column, value) that selects it, and the pair that it tells apart: the benchmarks' own
# models where both are in it, else the nearest thing to them.
PARTS = {
    "arc-challenge": ("category", "arc-challenge", STRONG, WEAK),
    "winogrande": ("category", "winogrande", STRONG, WEAK),
    "mbpp": ("category", "mbpp", STRONG, WEAK),
    "arena_bench": ("source", "golden:arena_bench_v1", STRONG, WEAK),
    "mmlu_pro": ("source", "golden:mmlu_pro", "gpt-4o", WEAK),
    "zeroeval": ("source", "golden:zeroeval", "gpt-4-turbo-2024-04-09", WEAK),
    "llmrouter": ("source", "golden:llmrouter", "llama-3.1-nemotron-51b-instruct", "Mistral-7B-Instruct-v0.3"),
}


def training_sets(root: Path, mmlu: data.Benchmark) -> dict[str, tuple[data.Preferences, str, str]]:
    """By name: battles, strong model, weak model."""
    (source,) = get_config().data.battles
    path = root / source.path
    table = read_table(path, columns=["source", "category", *source.drop_where])
    column = {name: table.column(name).to_numpy() for name in table.column_names}
    dropped = np.any([column[name] for name in source.drop_where], axis=0)
    column = {name: values[~dropped] for name, values in column.items()}
    is_clean = column["category"] != GSM8K_IN_DISGUISE
    read = data.read_preferences(path, drop_where=source.drop_where)
    golden = read.select(is_clean).without_unused_models()
    names = {data.ROUTELLM_STRONG: STRONG, data.ROUTELLM_WEAK: WEAK}
    mmlu_battles = data.golden_preferences(mmlu, rename=names)
    sets = {
        "golden": (golden, STRONG, WEAK),
        "golden + 1,500 MMLU": (data.concatenate([golden, mmlu_battles]), STRONG, WEAK),
        "1,500 MMLU": (mmlu_battles, STRONG, WEAK),
    }
    for name, (part, value, strong, weak) in PARTS.items():
        rows = is_clean & (column[part] == value)
        sets[name] = (read.select(rows).without_unused_models(), strong, weak)
    return sets


def main(data_root: str) -> None:
    root, featurizer = Path(data_root), open_featurizer(get_config().features)
    benchmarks = {name: data.load_benchmark(name, root / GOLDEN.root) for name in BENCHMARKS}
    learned, benchmarks["mmlu"] = data.smallest_by_hash(benchmarks["mmlu"], GOLDEN.num_prompts)
    sets = training_sets(root, learned)
    everything = sets["golden + 1,500 MMLU"][0].unique_prompts

    with EmbeddingCache() as cache:

        def embedding_of(prompts: tuple[str, ...]) -> np.ndarray:
            return featurizer.query(prompts, cache=cache)["embedding"]

        embedding = embedding_of(everything)
        embedded = data.EmbeddedPrompts(everything, embedding)
        dropped = {}
        for name, benchmark in benchmarks.items():
            found = data.contaminated(benchmark.prompts, everything, embedding_of(benchmark.prompts), embedding)
            dropped[name] = int(found.mask.sum())
            benchmarks[name] = benchmark.select(~found.mask)
        eval_embedding = {name: embedding_of(benchmark.prompts) for name, benchmark in benchmarks.items()}

        similarity: dict[tuple[str, str], Figure] = {}
        win_prob: dict[str, dict[str, np.ndarray]] = {name: {} for name in benchmarks}
        for set_name, (battles, strong, weak) in sets.items():
            own = embedded.rows(battles.unique_prompts)
            module = KNN.make_module(num_outputs=len(battles.models), attributes={}, featurizer=featurizer)
            memory = KNN.remember(module, data.to_batch(battles, own), battles.models)
            router = Router(
                module=module,
                models=battles.models,
                policy=Threshold(strong, weak),
                featurizer=featurizer,
                variables={"memory": memory},
            )
            for name, benchmark in benchmarks.items():
                similarity[set_name, name] = data.dataset_similarity(eval_embedding[name], own)
                win_prob[name][set_name] = router.win_prob(benchmark.prompts, cache=cache).astype(np.float64)

    apgr = {
        (set_name, name): result.apgr
        for name, benchmark in benchmarks.items()
        for set_name, result in evaluate(win_prob[name], benchmark).routers.items()
    }
    print(
        f"Measured on {datetime.date.today()} on {os.cpu_count()} CPU cores, by `experiments/similarity_and_apgr.py`.\n"
    )
    print(
        "S: mean, over a benchmark's prompts, of the highest cosine to any prompt of the training set. APGR: of nearest"
    )
    print("neighbours in the training set. Brackets: 95 % bootstrap intervals over the benchmark's prompts.")
    kept = ", ".join(f"{name} {len(benchmarks[name]):,} ({dropped[name]} dropped)" for name in benchmarks)
    print(f"Prompts, and how many were dropped as contaminated (cosine >= 0.95 or equal text): {kept}.\n")
    print("| training set | prompts | pair |" + "".join(f" {name} S | {name} APGR |" for name in benchmarks))
    print("|---|---|---|" + "---|---|" * len(benchmarks))
    for set_name, (battles, strong, weak) in sets.items():
        cells = [set_name, f"{len(battles.unique_prompts):,}", f"{strong} / {weak}"]
        for name in benchmarks:
            near, area = similarity[set_name, name], apgr[set_name, name]
            cells += [shown(near), shown(area)]
        print("| " + " | ".join(cells) + " |")
    print(f"\nRank correlation (Spearman) of S and APGR over the {len(sets)} training sets: ", end="")
    parts = []
    for name in benchmarks:
        pairs = [(similarity[set_name, name].value, apgr[set_name, name].value) for set_name in sets]
        found = spearmanr(*zip(*pairs, strict=True))
        parts.append(f"{name} {found.statistic:.2f} (p = {found.pvalue:.2f})")
    print(", ".join(parts) + ".")


def shown(figure: Figure) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


if __name__ == "__main__":
    main(sys.argv[1])
