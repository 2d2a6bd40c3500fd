"""A decoder as a router on 79,424 golden battles and 1,500 MMLU questions: adapters, and frozen features.

    python experiments/causal_router.py DATA GEMMA runs/causal_router

DATA as in ``mf_golden.py``; GEMMA is a folder of ``google/gemma-3-270m`` in Hugging Face's format. The 1,500 are those
of ``mf_golden_mmlu1500.py``. Adapters start as they are made, or from two epochs on the golden battles, which hold none
of the benchmarks' prompts; then they are trained on the 1,500. Start, rank, learning rate and epochs, and layer and
pooling of the frozen features, are chosen by 5-fold cross-validation inside the 1,500. The 12,537 other MMLU questions,
GSM8K and MT-Bench are only tested on. The folder gets ``cross_validation.md``, ``chosen.json``, ``win_prob.npz``,
``features_N.npy`` and ``adapters_HEAD_RANK.npz``; ``causal_comparison.py`` makes the tables.
About 8 minutes on an H200; many hours on CPU cores.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mf_golden_mmlu1500 import GOLDEN, STRONG, WEAK, get_config
from sklearn.linear_model import Ridge

from routerjax import evaluation, features, metrics, models, scoring, training
from routerjax.data import (
    ROUTELLM_STRONG,
    ROUTELLM_WEAK,
    Benchmark,
    Preferences,
    TokenBatches,
    load_benchmark,
    smallest_by_hash,
)
from routerjax.families import CAUSAL, pretrained_variables
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.pipeline import load_preferences
from routerjax.typing import PreferenceBatch, PyTree, Variables

FOLDS, MAX_LENGTH, LENGTHS, ROWS = 5, 256, (128, 256), 32
PRETRAINING_EPOCHS, PRETRAINING_RATE, EPOCHS, WARMUP = 2, 2e-4, 5, 20
STARTS, RATES = ("as made", "golden battles"), (5e-5, 2e-4)
# The first of these is tried with every start and rate, the others with those that it chose.
ROUTERS = (("linear", 16), ("linear", 4), ("tokens", 16))
LAYERS, POOLINGS, RIDGES = (6, 9, 12, 15, 18), ("mean", "lasttoken"), (1.0, 10.0, 100.0, 1000.0)


class Setting(NamedTuple):
    """Settings that cross-validation chooses."""

    head: str
    rank: int
    start: str
    rate: float


class Trainer:
    """Adapters of one rank under one head, with the programs that train and score them."""

    def __init__(
        self, folder: Path, frozen: features.TokenFeaturizer, head: str, rank: int, names: tuple[str, ...]
    ) -> None:
        chosen: dict[str, Any] = {"lora_rank": rank, "dtype": "bfloat16"}
        if jax.default_backend() == "gpu":
            chosen["attention"] = "cudnn"
        featurizer = dataclasses.replace(frozen, encoder=models.with_choices(frozen.encoder, chosen))
        shape: dict[str, Any] = {"num_outputs": len(names), "attributes": {"head": head}}
        self.module = CAUSAL.make_module(**shape, featurizer=featurizer)
        scored = CAUSAL.make_module(**shape, featurizer=featurizer.for_scoring())
        self.start = jax.tree.map(jnp.asarray, pretrained_variables(self.module, folder, jax.random.key(0)))
        self.optimizer = optax.inject_hyperparams(self._chain)(rate=0.0)
        step = training.make_train_step(self.module, BRADLEY_TERRY, self.optimizer, weight_per_step=float(ROWS))
        self.step = jax.jit(step)
        # Computed in float32, as a stored router is.
        self.score = jax.jit(scoring.make_score_fn(scored, strong=names.index(STRONG), weak=names.index(WEAK)))
        example = {name: np.zeros((1, 2), np.int32) for name in ("token_ids", "attention_mask")}
        self.state = training.create_state(
            self.module, example, self.optimizer, key=jax.random.key(0), variables=self.start
        )

    @staticmethod
    def _chain(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.0))

    def epochs(
        self, start: Variables, battles: Preferences, tokens: dict[str, np.ndarray], rate: float, epochs: int, seed: int
    ) -> Iterator[Variables]:
        """The variables after each epoch; the rate rises for some steps, and is constant then."""
        ids = [tokens[prompt] for prompt in battles.unique_prompts]
        source = TokenBatches(battles, ids, lengths=LENGTHS, batch_tokens=ROWS * LENGTHS[0])
        state, taken = self.state.replace(trained={"params": start["params"]}), 0
        for epoch in range(epochs):
            for batch in map(fixed_shape, source.shuffled(seed=seed, epoch=epoch)):
                taken += 1
                hyper = {"rate": jnp.float32(rate * min(1.0, taken / WARMUP))}
                state = state.replace(opt_state=state.opt_state._replace(hyperparams=hyper))
                state, _ = self.step(state, batch, jax.random.key(seed))
            yield {**state.fixed, **state.trained}

    def win_prob(self, variables: Variables, prompts: Sequence[str], tokens: dict[str, np.ndarray]) -> np.ndarray:
        """P(the strong model is better) of each prompt, float64."""
        parts = [
            np.asarray(self.score(variables, query))[: len(rows)].astype(np.float64)
            for rows, query in batches(prompts, tokens)
        ]
        return np.concatenate(parts)


def batches(
    prompts: Sequence[str], tokens: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows and their query, all of one shape; the last is filled up with empty rows."""
    rows, size = np.arange(len(prompts)), 4 * ROWS
    for part in (rows[start : start + size] for start in range(0, len(rows), size)):
        query = {name: np.zeros((size, MAX_LENGTH), np.int32) for name in ("token_ids", "attention_mask")}
        for place, row in enumerate(part):
            ids = tokens[prompts[row]]
            query["token_ids"][place, : len(ids)], query["attention_mask"][place, : len(ids)] = ids, 1
        yield part, query


def rows_of(length: int) -> int:
    return ROWS * LENGTHS[0] // length


def fixed_shape(batch: PreferenceBatch) -> PreferenceBatch:
    """The batch with as many rows and battles as any of its length, so that folds share a program."""
    length = batch.query["token_ids"].shape[1]
    rows = rows_of(length)
    room = 40 * rows

    def padded(leaf: np.ndarray, size: int) -> np.ndarray:
        assert len(leaf) <= size
        return np.pad(leaf, [(0, size - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)])

    query = {name: padded(np.asarray(leaf), rows) for name, leaf in batch.query.items()}
    rest = {name: padded(np.asarray(getattr(batch, name)), room) for name in batch._fields if name != "query"}
    rest["outcome"][len(batch.outcome) :, 1] = 1.0
    return PreferenceBatch(query=query, **rest)


def frozen_features(
    folder: Path,
    featurizer: features.TokenFeaturizer,
    prompts: Sequence[str],
    tokens: dict[str, np.ndarray],
    wanted: Sequence[tuple[int, str]],
) -> dict[tuple[int, str], np.ndarray]:
    """Embeddings ``[prompts, width]`` of the frozen decoder, by layer and pooling, float32."""
    layers = sorted({layer for layer, _ in wanted})
    module = CAUSAL.make_module(num_outputs=2, attributes={}, featurizer=featurizer)
    params = pretrained_variables(module, folder, jax.random.key(0))["params"]["encoder"]
    config = featurizer.encoder.config

    @jax.jit
    def embed(params: PyTree, query: PyTree) -> dict[str, jax.Array]:
        embedded = {}
        for layer in layers:
            lower = dataclasses.replace(
                config, num_layers=layer, windows=config.windows[:layer], final_norm=layer == config.num_layers
            )
            part = {**params, "layers": jax.tree.map(lambda leaf, layer=layer: leaf[:layer], params["layers"])}
            module = models.SentenceEmbedding(models.Decoder(lower), POOLINGS)
            both = module.apply({"params": {"encoder": part}}, query)
            for pooling, embedding in zip(POOLINGS, jnp.split(both, len(POOLINGS), axis=-1), strict=True):
                embedded[f"{layer} {pooling}"] = embedding
        return embedded

    params = jax.tree.map(jnp.asarray, params)
    parts = [
        {name: np.asarray(leaf)[: len(rows)] for name, leaf in embed(params, query).items()}
        for rows, query in batches(prompts, tokens)
    ]
    return {
        (layer, pooling): np.concatenate([part[f"{layer} {pooling}"] for part in parts]) for layer, pooling in wanted
    }


def figures(win_prob: np.ndarray, benchmark: Benchmark) -> str:
    curve = metrics.cost_quality_curve(win_prob, benchmark.quality[ROUTELLM_STRONG], benchmark.quality[ROUTELLM_WEAK])
    return f"{metrics.apgr(curve):.4f} | {log_loss(win_prob, benchmark):.4f}"


def log_loss(win_prob: np.ndarray, benchmark: Benchmark) -> float:
    label = evaluation.preference_label(benchmark, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK)
    return float(metrics.log_loss(np.clip(win_prob, 1e-6, 1 - 1e-6), label))


def ridge(train: np.ndarray, label: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    mean, scale = train.mean(axis=0), train.std(axis=0).mean()
    model = Ridge(alpha=penalty * len(train) / 1000).fit((train - mean) / scale, label)
    return np.clip(model.predict((test - mean) / scale), 0.01, 0.99)


def main(data_root: str, folder: Path, output: Path) -> None:
    began = time.perf_counter()

    def log(*words: object) -> None:
        print(f"{time.perf_counter() - began:6.0f} s", *words, flush=True)

    config = get_config()
    golden_only = dataclasses.replace(config.data, root=data_root, golden=(dataclasses.replace(GOLDEN, weight=1.0),))
    battles = load_preferences(golden_only)
    root = Path(data_root) / GOLDEN.root
    benchmarks = {name: load_benchmark(name, root) for name in ("mmlu", "gsm8k", "mt_bench")}
    golden, rest = smallest_by_hash(benchmarks["mmlu"], GOLDEN.num_prompts or 0)
    tests = {**benchmarks, "mmlu": rest}
    is_golden = np.isin(battles.prompts, golden.prompts)
    labelled, other = battles.select(np.flatnonzero(is_golden)), battles.select(np.flatnonzero(~is_golden))
    fold_of = dict(zip(np.random.default_rng(0).permutation(sorted(golden.prompts)), itertools.cycle(range(FOLDS))))
    golden_fold = np.asarray([fold_of[prompt] for prompt in golden.prompts])
    fold = np.asarray([fold_of[prompt] for prompt in labelled.prompts])
    label = evaluation.preference_label(golden, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK)

    featurizer = features.load_tokens(folder, max_length=MAX_LENGTH, truncation="left")
    prompts = list(dict.fromkeys([*battles.prompts, *(p for test in tests.values() for p in test.prompts)]))
    read = featurizer.tokenizer.read(prompts)
    tokens = dict(zip(prompts, read.token_ids, strict=True))
    log(f"{len(prompts)} prompts, {read.is_cut.sum()} cut, {np.mean([len(ids) for ids in read.token_ids]):.0f} tokens")
    output.mkdir(parents=True, exist_ok=True)
    win_prob: dict[str, np.ndarray] = {"out of fold label": label}
    lines = ["| router | setting | APGR, out of fold | log-loss |", "|---|---|---|---|"]

    def note(line: str) -> None:
        lines.append(line)
        log(line)

    # Frozen features under ridge.
    wanted = list(itertools.product(LAYERS, POOLINGS))
    frozen = frozen_features(folder, featurizer, golden.prompts, tokens, wanted)
    tried = []
    for (layer, pooling), penalty in itertools.product(wanted, RIDGES):
        values, out = frozen[layer, pooling], np.empty(len(golden))
        for each in range(FOLDS):
            held = golden_fold == each
            out[held] = ridge(values[~held], label[~held], values[held], penalty)
        tried.append((log_loss(out, golden), layer, pooling, penalty, out))
        note(f"| ridge | layer {layer}, {pooling}, penalty {penalty:g} | {figures(out, golden)} |")
    _, layer, pooling, penalty, out = min(tried, key=lambda one: one[0])
    win_prob["ridge gemma, out of fold"] = out
    embedded = frozen_features(folder, featurizer, prompts, tokens, [(layer, pooling)])[layer, pooling]
    place = {prompt: row for row, prompt in enumerate(prompts)}

    def rows(some: Sequence[str]) -> np.ndarray:
        return embedded[[place[prompt] for prompt in some]]

    for name, test in tests.items():
        win_prob[f"ridge gemma, {name}"] = ridge(rows(golden.prompts), label, rows(test.prompts), penalty)
    half = embedded.astype(np.float16)
    for part, start in enumerate(range(0, len(half), 12000)):
        np.save(output / f"features_{part}.npy", half[start : start + 12000])
    log("frozen features:", layer, pooling, penalty, "MMLU", figures(win_prob["ridge gemma, mmlu"], rest))

    chosen: list[tuple[float, Setting, int]] = []
    for head, rank in ROUTERS:
        trainer = Trainer(folder, featurizer, head, rank, battles.models)
        *_, pretrained = trainer.epochs(trainer.start, other, tokens, PRETRAINING_RATE, PRETRAINING_EPOCHS, seed=7)
        zero_shot = trainer.win_prob(pretrained, golden.prompts, tokens)
        log(head, rank, "after the golden battles: the 1,500", figures(zero_shot, golden))
        starts = dict(zip(STARTS, (trainer.start, pretrained), strict=True))
        first = chosen[0][1] if chosen else None
        best: tuple[float, Setting, int] | None = None
        for start, rate in [(first.start, first.rate)] if first else itertools.product(STARTS, RATES):
            out = np.empty((EPOCHS, len(golden)))
            for each in range(FOLDS):
                held = np.flatnonzero(golden_fold == each)
                train = labelled.select(np.flatnonzero(fold != each))
                some = [golden.prompts[row] for row in held]
                trained = trainer.epochs(starts[start], train, tokens, rate, EPOCHS, seed=each)
                for epoch, variables in enumerate(trained):
                    out[epoch, held] = trainer.win_prob(variables, some, tokens)
            setting = Setting(head, rank, start, rate)
            for epoch in range(EPOCHS):
                where = f"rank {rank}, from {start}, rate {rate:g}, epochs {epoch + 1}"
                note(f"| causal, {head} | {where} | {figures(out[epoch], golden)} |")
                loss = log_loss(out[epoch], golden)
                if best is None or loss < best[0]:
                    best = loss, setting, epoch + 1
                    win_prob[f"causal {head} {rank}, out of fold"] = out[epoch].copy()
        assert best is not None
        chosen.append(best)
        _, setting, epochs = best
        total: dict[str, np.ndarray] = {}
        for seed in (100, 101, 102):
            start = starts[setting.start]
            *_, variables = trainer.epochs(start, labelled, tokens, setting.rate, epochs, seed=seed)
            for name, test in tests.items():
                values = trainer.win_prob(variables, test.prompts, tokens)
                win_prob[f"causal {head} {rank} seed {seed}, {name}"] = values
                total[name] = total.get(name, 0.0) + values / 3
            log(setting, epochs, seed, "MMLU", figures(win_prob[f"causal {head} {rank} seed {seed}, mmlu"], rest))
            np.savez(output / "win_prob.npz", **win_prob)
            if seed == 100:
                params = jax.tree_util.tree_leaves_with_path(variables["params"])
                kept = {jax.tree_util.keystr(path): np.asarray(leaf).astype(np.float16) for path, leaf in params}
                np.savez(output / f"adapters_{head}_{rank}.npz", **kept)
        log("mean of three: MMLU", figures(total["mmlu"], rest))
        (output / "cross_validation.md").write_text("\n".join(lines) + "\n")
    summary = [{"log_loss": loss, **setting._asdict(), "epochs": epochs} for loss, setting, epochs in chosen]
    (output / "chosen.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
