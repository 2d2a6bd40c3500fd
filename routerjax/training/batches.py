"""Training on batches that come one by one from the host: routers that read tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.training.loop import FitResult, run_epochs
from routerjax.training.parallel import accumulating_step, pmap_sharding, require_one_process
from routerjax.training.sources import Batches
from routerjax.training.state import TrainState, create_state, make_optimizer
from routerjax.typing import PyTree


def device_axis(training: TrainingConfig) -> int | None:
    """Length of the leading axis of a batch's leaves: the local devices under pmap, else None for no such axis."""
    return jax.local_device_count() if training.devices == "pmap" else None


def fit_batches(
    module: nn.Module,
    train: Batches,
    validation: Batches | None,
    *,
    params: PyTree,
    likelihood: Likelihood = BRADLEY_TERRY,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    directory: str | Path,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train as :func:`routerjax.training.fit`, on data that does not lie on the device, from pretrained parameters.

    Args:
        module: from a query to scores.
        train: micro-batches, with the leading axis of :func:`device_axis`; ``training.micro_batches`` of them make a
            step, whatever their shapes, the last step of an epoch having what is left.
        validation: batches without that axis, or None to keep the last parameters.
        params: where training starts.
        likelihood: its loss is minimised.
        optimizer: AdamW, its schedule, and the rates of the encoder's layers.
        training: epochs, patience, seeds, devices.
        directory: for ``checkpoints/``, ``metrics.jsonl`` and TensorBoard files.
        resume: go on from the newest checkpoint in ``directory``.
        progress: show progress bars.

    Raises:
        InputError, KeyboardInterrupt, OSError: as :func:`routerjax.training.fit`.
    """
    require_one_process()
    steps_per_epoch = -(-train.num_batches // training.micro_batches)
    transformation = make_optimizer(optimizer, steps_per_epoch * training.epochs)
    # Donated on the first step: the caller's parameters stay theirs.
    params = jax.tree.map(jnp.copy, params)
    state = create_state(
        module, {}, transformation, key=jax.random.key(training.init_seed), likelihood=likelihood, params=params
    )
    run = accumulating_step(
        module,
        likelihood,
        transformation,
        weight_per_step=train.total_weight / steps_per_epoch,
        num_devices=device_axis(training),
    )
    key = jax.random.key(training.noise_seed)
    if training.devices == "pmap":
        state, key = jax.device_put((state, key), pmap_sharding())

    def run_steps(state: TrainState, epoch: int, start: int) -> Iterator[tuple[TrainState, dict[str, np.ndarray]]]:
        first = start * training.micro_batches
        batches = iter(train.shuffled(seed=training.order_seed, epoch=epoch, start=first))
        steps = iter(lambda: list(itertools.islice(batches, training.micro_batches)), [])
        step = next(steps, None)
        while step is not None:
            state, metrics = run(state, step, key)
            step = next(steps, None)  # made while the device computes
            yield state, {name: np.asarray(value)[None] for name, value in jax.device_get(metrics).items()}

    return run_epochs(
        state,
        run_steps,
        train,
        validation,
        module=module,
        likelihood=likelihood,
        steps_per_epoch=steps_per_epoch,
        optimizer=optimizer,
        training=training,
        directory=directory,
        resume=resume,
        progress=progress,
    )
