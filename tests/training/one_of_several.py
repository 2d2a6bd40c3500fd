"""Process, one of several: ``python -m tests.training.one_of_several COORDINATOR COUNT INDEX STEPS OUTPUT FAMILY...``.

It trains small routers of each kind, each in a folder of its own below ``OUTPUT``, and goes on with those that are
there. The first process writes the losses of their epochs to ``OUTPUT/losses.json``.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from routerjax import data, distributed, models, partitioning, training
from routerjax.config import OptimizerConfig, TrainingConfig
from tests.data.test_loader import token_battles
from tests.training.battles import NUM_MODELS, random_battles

DEVICES = 8
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0, final_fraction=1.0)


def bert() -> models.BertRouter:
    encoder = models.BertEncoder(
        vocab_size=100, width=8, num_layers=1, num_heads=2, mlp_dim=16, max_positions=16, initializer_range=0.3
    )
    return models.BertRouter(encoder, num_models=3, head="mean")


def causal() -> models.CausalRouter:
    config = models.DecoderConfig(
        model_type="qwen3", vocab_size=100, width=16, num_layers=2, num_heads=4, num_key_heads=2, head_dim=4,
        mlp_dim=32, max_positions=16, qk_norm=True, attention_scale=0.5, windows=(0, 0), initializer_range=0.3,
        added_tokens=8,
    )  # fmt: skip
    return models.CausalRouter(models.Decoder(config), 3)


def runs(wanted: set[str], steps: int) -> Iterator[tuple[str, dict]]:
    """Arguments of runs of so many steps, or a few more; mf has its battles on the devices, others get tokens."""
    mf = models.MatrixFactorization(NUM_MODELS, model_dim=8, noise_std=0.1)
    if "mf" in wanted:
        config = TrainingConfig(epochs=-(-steps // 4), batch_size=32)
        yield "mf", {"module": mf, "source": random_battles(), "wrapper": training.pmap_step, "training": config}
    mesh = training.mesh_step(partitioning.make_mesh(2))
    for name, make, wrapper in (
        ("bert_pmap", bert, training.pmap_step),
        ("bert_mesh", bert, mesh),
        ("causal", causal, mesh),
    ):
        if name in wanted:
            battles, token_ids = token_battles()
            batches = data.TokenBatches(
                battles, token_ids, lengths=(16,), batch_tokens=32, num_devices=wrapper.num_parts
            )
            config = TrainingConfig(epochs=-(-steps // batches.num_batches))
            yield name, {"module": make(), "source": batches, "wrapper": wrapper, "training": config}


def train(output: Path, wanted: set[str], steps: int, epochs: int | None = None) -> None:
    """Train, or go on with what is there, for so many epochs, or to the end."""
    losses = {}
    for name, arguments in runs(wanted, steps):

        def stop(row: dict) -> None:
            if row["epoch"] == epochs:
                raise StopIteration

        training_config = dataclasses.replace(arguments.pop("training"), checkpoint_every_steps=2, keep_last=2)
        try:
            result = training.fit(
                **arguments,
                training=training_config,
                optimizer=OPTIMIZER,
                directory=training.Resume(output / name),
                hooks=[stop],
            )
        except StopIteration:
            continue
        losses[name] = [row["loss"] for row in result.history]
    if distributed.is_first():
        (output / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    coordinator, count, index, steps, output, *wanted = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", DEVICES // int(count))
    distributed.join(coordinator, int(count), int(index))
    train(Path(output), set(wanted), int(steps))
    distributed.leave()
