"""``routerjax demo``: the whole path on a simulated arena whose win probabilities are known."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from routerjax.atomic import new_directory, refuse_existing
from routerjax.config import BattleSource, DataConfig, ExperimentConfig, FeatureConfig, RouterConfig, TrainingConfig
from routerjax.data import simulate_arena, write_benchmark_table, write_preferences
from routerjax.display import printable
from routerjax.errors import InputError
from routerjax.evaluation import evaluate_routers, print_table, require_plots
from routerjax.features import EmbeddingCache, load_encoder
from routerjax.formats import export
from routerjax.pipeline import train_router
from routerjax.policies import threshold_for_share
from routerjax.router import load_router, save_router

STRONG_SHARE = 0.3
QUESTIONS = (
    "Hello! Any plans for the weekend?",
    "How do I sort a list in Python?",
    "Prove that there are infinitely many primes of the form 4k + 3, and bound the n-th of them.",
)


def run_demo(output: Path, *, seed: int = 0) -> None:
    """Simulate, train, evaluate, calibrate, export, reload and score; say at each step what was written where.

    Args:
        output: a new folder for everything the demo writes.
        seed: of the simulated arena.

    Raises:
        InputError: ``output`` exists already, or the encoder or matplotlib is not installed.
    """
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    try:
        refuse_existing(output)
    except InputError as error:
        raise InputError(
            f"{error}: rm -r {output}, or routerjax demo --output DIR (make demo DEMO_OUTPUT=DIR)"
        ) from error
    shown = escape(printable(str(output)))  # rich reads brackets as markup
    features = FeatureConfig()
    # Fail now rather than after the first steps, if something is not there.
    require_plots()
    load_encoder(features.encoder, max_length=features.max_length)

    def step(number: int, what: str) -> None:
        console.print(f"\n[bold]{number}. {what}[/bold]  [dim]{time.monotonic() - started:.0f} s[/dim]")

    arena = simulate_arena(seed=seed)
    battles, benchmark = arena.preferences, arena.benchmark
    step(1, "Simulate an arena: prompts of 7 domains and 3 levels, 6 models whose chances on each prompt are known")
    with new_directory(output / "arena") as folder:
        write_preferences(battles, folder / "battles.parquet")
        write_benchmark_table(benchmark, folder / "benchmark.parquet")
    console.print(f"   {shown}/arena/battles.parquet: {len(battles)} battles on {len(battles.unique_prompts)} prompts")
    console.print(f"   {shown}/arena/benchmark.parquet: {len(benchmark)} other prompts, with the true qualities")

    step(2, f"Encode the prompts with {features.encoder}, and train matrix factorisation on the battles")
    config = ExperimentConfig(
        data=DataConfig(root=str(output / "arena"), battles=(BattleSource(path="battles.parquet"),)),
        router=RouterConfig(family="mf", strong=str(benchmark.strong), weak=str(benchmark.weak)),
        features=features,
        training=TrainingConfig(epochs=10, batch_size=64),
    )
    router = train_router(config, output / "mf")
    loss, epoch = router.provenance["validation_loss"], router.provenance["best_epoch"]
    console.print(f"   best validation loss {loss:.4f} nats a battle (epoch {epoch}; a coin flip has 0.6931)")
    console.print(
        f"   {shown}/mf: router/, knn/ (the nearest-neighbour control), training/ (checkpoints, metrics.jsonl)"
    )

    step(3, "Evaluate on the other prompts, beside the controls; the oracle knows the true win probabilities")
    results = evaluate_routers(
        [output / "mf"],
        benchmarks=[str(output / "arena" / "benchmark.parquet")],
        strong=benchmark.strong,
        weak=benchmark.weak,
        output=output / "evaluation",
    )
    print_table(results[0], console)
    console.print(f"   {shown}/evaluation: report.html, results.json, results.md, curves.png")

    step(4, f"Calibrate: the threshold that sends {STRONG_SHARE:.0%} of the training prompts to {router.strong}")
    with EmbeddingCache() as cache:
        win_prob = router.win_prob(battles.unique_prompts, cache=cache)
    threshold, attained = threshold_for_share(win_prob, STRONG_SHARE)
    save_router(router.with_threshold(threshold), output / "calibrated")
    console.print(
        f"   threshold {threshold:.4f} sends {attained:.1%}; {shown}/calibrated: the router with its threshold"
    )

    step(5, "Export to StableHLO, reload in a fresh process without routerjax, and compare")
    differences = export(load_router(output / "calibrated"), output / "bundle", "stablehlo")
    listed = ", ".join(f"{name} {difference:.0e}" for name, difference in differences.items())
    console.print(f"   {shown}/bundle: verified; largest differences of win probability: {listed}")

    step(6, f"Score three prompts with the bundle: python {shown}/bundle/routerjax_runtime.py PROMPT ...")
    command = [sys.executable, "-I", str(output / "bundle" / "routerjax_runtime.py"), *QUESTIONS]
    scored = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in scored.stdout.splitlines():
        row = json.loads(line)
        console.print(f"   {row['win_prob']:.3f} -> {row['model']:<10} {row['prompt']}", markup=False)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Next: routerjax train --help, and README.md.")
