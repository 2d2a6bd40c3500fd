"""A decoder as a router on 79,424 golden battles and 1,500 MMLU questions: adapters, and frozen features.

    python experiments/causal_router.py DATA GEMMA runs/causal_router

DATA as in ``mf_golden.py``; GEMMA is a folder of ``google/gemma-3-270m`` in Hugging Face's format. The 1,500 are those
of ``mf_golden_mmlu1500.py``. Adapters start as they are made, or from two epochs on the golden battles, which hold none
of the benchmarks' prompts; then they are trained on the 1,500. Start, rank, learning rate and epochs, and layer and
pooling of the frozen features, are chosen by 5-fold cross-validation inside the 1,500. The 12,537 other MMLU questions,
GSM8K and MT-Bench are only tested on. The folder gets ``cross_validation.md``, ``win_prob.npz``,
``features.npy``, and the routers; ``causal_comparison.py`` makes the tables.
About 8 minutes on an H200; many hours on CPU cores.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from embedding_routers import FOLDS, Material, apgr
from mf_golden_mmlu1500 import STRONG, WEAK
from sklearn.linear_model import Ridge

from routerjax import Router, evaluation, features, metrics, models, save_router, scoring, training
from routerjax.data import (
    ROUTELLM_STRONG,
    ROUTELLM_WEAK,
    Benchmark,
    Preferences,
    TokenBatches,
)
from routerjax.families import CAUSAL, pretrained_variables
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.policies import Threshold
from routerjax.typing import PreferenceBatch, PyTree, Variables

MAX_LENGTH, LENGTHS, ROWS = 256, (128, 256), 32
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
        self.names, self.featurizer = names, featurizer.for_scoring()
        self.scored = CAUSAL.make_module(**shape, featurizer=self.featurizer)
        self.start = jax.tree.map(jnp.asarray, pretrained_variables(self.module, folder, jax.random.key(0)))
        self.optimizer = optax.inject_hyperparams(self._chain)(rate=0.0)
        step = training.make_train_step(self.module, BRADLEY_TERRY, self.optimizer, weight_per_step=float(ROWS))
        self.step = jax.jit(step)
        # Computed in float32, as a stored router is.
        self.score = jax.jit(scoring.make_score_fn(self.scored, strong=names.index(STRONG), weak=names.index(WEAK)))
        self.state = training.create_state(
            self.module, models.example_tokens(), self.optimizer, key=jax.random.key(0), variables=self.start
        )

    def router(self, variables: Variables) -> Router:
        """The router of trained variables."""
        return Router(
            module=self.scored,
            featurizer=self.featurizer,
            models=self.names,
            policy=Threshold(STRONG, WEAK),
            variables=variables,
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
    return f"{apgr(win_prob, benchmark):.4f} | {log_loss(win_prob, benchmark):.4f}"


def log_loss(win_prob: np.ndarray, benchmark: Benchmark) -> float:
    label = evaluation.preference_label(benchmark, strong=ROUTELLM_STRONG, weak=ROUTELLM_WEAK)
    return float(metrics.log_loss(np.clip(win_prob, 1e-6, 1 - 1e-6), label))


def ridge(train: np.ndarray, label: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    mean, scale = train.mean(axis=0), train.std(axis=0).mean()
    model = Ridge(alpha=penalty * len(train) / 1000).fit((train - mean) / scale, label)
    return np.clip(model.predict((test - mean) / scale), 0.01, 0.99)


def ridge_out_of_fold(values: np.ndarray, material: Material, penalty: float) -> np.ndarray:
    """Win probabilities of the 1,500, each of a fit outside its fold."""
    out = np.empty(len(values))
    for each in range(FOLDS):
        held = material.golden_fold == each
        out[held] = ridge(values[~held], material.label[~held], values[held], penalty)
    return out


def main(data_root: str, folder: Path, output: Path) -> None:
    began = time.perf_counter()

    def log(*words: object) -> None:
        print(f"{time.perf_counter() - began:6.0f} s", *words, flush=True)

    material = Material(Path(data_root))
    battles, golden, tests = material.battles, material.golden, material.tests
    fold, golden_fold = material.fold, material.golden_fold
    featurizer = features.load_tokens(folder, max_length=MAX_LENGTH, truncation="left")
    read = featurizer.tokenizer.read(material.prompts)
    tokens = dict(zip(material.prompts, read.token_ids, strict=True))
    log(f"{len(tokens)} prompts, {read.is_cut.sum()} cut, {np.mean([len(ids) for ids in read.token_ids]):.0f} tokens")
    output.mkdir(parents=True, exist_ok=True)
    win_prob: dict[str, np.ndarray] = {}
    lines = ["| router | setting | APGR, out of fold | log-loss |", "|---|---|---|---|"]

    def note(line: str) -> None:
        lines.append(line)
        log(line)

    # Frozen features under ridge.
    wanted = list(itertools.product(LAYERS, POOLINGS))
    frozen = frozen_features(folder, featurizer, golden.prompts, tokens, wanted)
    tried = []
    for (layer, pooling), penalty in itertools.product(wanted, RIDGES):
        out = ridge_out_of_fold(frozen[layer, pooling], material, penalty)
        tried.append((log_loss(out, golden), layer, pooling))
        note(f"| ridge | layer {layer}, {pooling}, penalty {penalty:g} | {figures(out, golden)} |")
    _, layer, pooling = min(tried)
    embedding = frozen_features(folder, featurizer, material.prompts, tokens, [(layer, pooling)])[layer, pooling]
    np.save(output / "features.npy", embedding.astype(np.float16))
    log("frozen features: layer", layer, pooling)

    chosen: list[tuple[float, Setting, int]] = []
    for head, rank in ROUTERS:
        trainer = Trainer(folder, featurizer, head, rank, battles.models)
        *_, pretrained = trainer.epochs(
            trainer.start, battles.select(fold < 0), tokens, PRETRAINING_RATE, PRETRAINING_EPOCHS, seed=7
        )
        zero_shot = trainer.win_prob(pretrained, golden.prompts, tokens)
        log(head, rank, "after the golden battles: the 1,500", figures(zero_shot, golden))
        starts = dict(zip(STARTS, (trainer.start, pretrained), strict=True))
        first = chosen[0][1] if chosen else None
        best: tuple[float, Setting, int] | None = None
        for start, rate in [(first.start, first.rate)] if first else itertools.product(STARTS, RATES):
            out = np.empty((EPOCHS, len(golden)))
            for each in range(FOLDS):
                held = np.flatnonzero(golden_fold == each)
                train = battles.select((fold >= 0) & (fold != each))
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
        assert best is not None
        chosen.append(best)
        _, setting, epochs = best
        total: dict[str, np.ndarray] = {}
        for seed in (100, 101, 102):
            start = starts[setting.start]
            *_, variables = trainer.epochs(start, battles.select(fold >= 0), tokens, setting.rate, epochs, seed=seed)
            for name, test in tests.items():
                values = trainer.win_prob(variables, test.prompts, tokens)
                win_prob[f"causal {head} {rank} seed {seed}, {name}"] = values
                total[name] = total.get(name, 0.0) + values / 3
            log(
                setting,
                epochs,
                seed,
                "MMLU",
                figures(win_prob[f"causal {head} {rank} seed {seed}, mmlu"], tests["mmlu"]),
            )
            np.savez(output / "win_prob.npz", **win_prob)
        log("mean of three: MMLU", figures(total["mmlu"], tests["mmlu"]))
        save_router(trainer.router(variables), output / f"{head}_{rank}")  # of the last seed
        settings = f"rank {rank}, from {setting.start}, rate {setting.rate:g}, epochs {epochs}"
        lines.append(f"| causal, {head}: chosen | {settings} |  |  |")
        (output / "cross_validation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
