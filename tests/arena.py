"""A small simulated arena on disk with a tiny encoder, and the configuration of a run on it."""

from pathlib import Path

from routerjax.data import simulate_arena, write_benchmark_table, write_preferences
from tests.encoders import save_tiny_encoder

CONFIG = """\
from routerjax.config import (
    BattleSource, DataConfig, ExperimentConfig, FeatureConfig, OptimizerConfig, RouterConfig, TrainingConfig
)


def get_config():
    return ExperimentConfig(
        data=DataConfig(
            root={root!r}, battles=(BattleSource(path="battles.parquet"),), validation_fraction=0.2
        ),
        features=FeatureConfig(encoder={encoder!r}, max_length=32),
        router=RouterConfig(
            strong="sim-large", weak="sim-small", attributes={{"model_dim": 8, "noise_std": 0.1}}
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        training=TrainingConfig(epochs=3, batch_size=32),
    )
"""


def save_arena(folder: Path) -> None:
    """Write ``battles.parquet``, ``benchmark.parquet``, ``encoder/`` and ``config.py``."""
    arena = simulate_arena(num_prompts=80, num_test_prompts=40)
    write_preferences(arena.preferences, folder / "battles.parquet")
    write_benchmark_table(arena.benchmark, folder / "benchmark.parquet")
    save_tiny_encoder(folder / "encoder")
    (folder / "config.py").write_text(CONFIG.format(root=str(folder), encoder=str(folder / "encoder")))
