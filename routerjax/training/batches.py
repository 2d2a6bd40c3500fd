"""Training on batches that come one by one from the host: routers that read tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.training.loop import FitResult, make_validation_sums, run_epochs
from routerjax.training.parallel import jit_step, pmap_step
from routerjax.training.state import TrainState, create_state, make_optimizer
from routerjax.training.step import make_train_step
from routerjax.typing import Array, PreferenceBatch, PreferenceLoss, PyTree


class Batches(Protocol):
    """What training asks of a source of batches; :class:`routerjax.data.TokenBatches` is one."""

    @property
    def num_battles(self) -> int:
        """Battles of a pass."""
        ...

    @property
    def total_weight(self) -> float:
        """Sum of their weights."""
        ...

    def num_steps(self, *, seed: int, epoch: int) -> int:
        """Batches of an epoch."""
        ...

    def shuffled(self, *, seed: int, epoch: int) -> Iterable[PreferenceBatch]:
        """The batches of an epoch, a pure function of seed and epoch: leaves ``[devices, micro-batches, ...]``."""
        ...

    def in_order(self) -> Iterable[PreferenceBatch]:
        """All battles once, for validation."""
        ...


def batch_group(training: TrainingConfig) -> tuple[int, ...]:
    """The leading axes of a step's leaves: devices under pmap, then micro-batches, whose gradients are added up."""
    devices = (jax.local_device_count(),) if training.devices == "pmap" else ()
    return (*devices, training.micro_batches)


def fit_batches(
    module: nn.Module,
    train: Batches,
    validation: Batches | None,
    *,
    params: PyTree,
    loss: PreferenceLoss,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    directory: str | Path,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """As :func:`routerjax.training.fit`, for data that does not lie on the device, from pretrained parameters.

    Args:
        module: from a query to scores.
        train: batches whose leaves have the leading axes of :func:`batch_group`.
        validation: batches without leading axes, or None to keep the last parameters.
        params: where training starts.
        loss: per battle.
        optimizer: AdamW, its schedule, and the rates of the encoder's layers.
        training: epochs, patience, seeds, devices.
        directory: for ``checkpoints/``, ``metrics.jsonl`` and TensorBoard files.
        resume: go on from the newest checkpoint in ``directory``.
        progress: show progress bars.

    Raises:
        InputError: as :func:`routerjax.training.fit`.
    """
    seed = training.order_seed
    steps = [train.num_steps(seed=seed, epoch=epoch) for epoch in range(training.epochs)]
    transformation = make_optimizer(optimizer, sum(steps))
    # Donated on the first step: the caller's parameters stay theirs.
    params = jax.tree.map(jnp.copy, params)
    state = create_state(module, {}, transformation, key=jax.random.key(training.init_seed), params=params)
    step = make_train_step(module, loss, transformation, micro_batches=True)
    run = pmap_step(step) if training.devices == "pmap" else jit_step(step)
    key = jax.random.key(training.noise_seed)

    def run_epoch(state: TrainState, epoch: int) -> tuple[TrainState, dict[str, Array]]:
        rows = []
        batches = train.shuffled(seed=seed, epoch=epoch)
        for batch in tqdm.tqdm(batches, total=steps[epoch], unit="step", disable=not progress, delay=2, leave=False):
            state, metrics = run(state, batch, key)
            rows.append(metrics)
        return state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))

    sums = jax.jit(make_validation_sums(module, loss))

    def validate(state: TrainState) -> Array:
        parts = [sums(state.variables, batch) for batch in ([] if validation is None else validation.in_order())]
        loss_sum, weight_sum = np.sum(np.asarray(jax.device_get(parts), np.float64), axis=0)
        return jnp.float32(loss_sum / weight_sum)

    return run_epochs(
        state,
        run_epoch,
        None if validation is None else validate,
        steps_per_epoch=steps,
        optimizer=optimizer,
        training=training,
        identity={
            "train_battles": train.num_battles,
            "train_weight": train.total_weight,
            "validation_battles": 0 if validation is None else validation.num_battles,
        },
        directory=directory,
        resume=resume,
        progress=progress,
    )
