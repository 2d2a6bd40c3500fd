"""Training on batches that come one by one from the host: routers that read tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.training.loop import FitResult, run_epochs
from routerjax.training.parallel import accumulating_step, require_one_process
from routerjax.training.state import TrainState, create_state, make_optimizer
from routerjax.training.step import make_validation_sums
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

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        ...

    def shuffled(self, *, seed: int, epoch: int, start: int = 0) -> Iterable[PreferenceBatch]:
        """The batches of an epoch from the ``start``-th on, a pure function of seed and epoch; few shapes."""
        ...

    def in_order(self) -> Iterable[PreferenceBatch]:
        """All battles once, for validation."""
        ...


def device_axis(training: TrainingConfig) -> int | None:
    """Length of the leading axis of a batch's leaves: the local devices under pmap, else None for no such axis."""
    return jax.local_device_count() if training.devices == "pmap" else None


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
        train: micro-batches, with the leading axis of :func:`device_axis`; ``training.micro_batches`` of them make a
            step, whatever their shapes, the last step of an epoch having what is left.
        validation: batches without that axis, or None to keep the last parameters.
        params: where training starts.
        loss: per battle.
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
    state = create_state(module, {}, transformation, key=jax.random.key(training.init_seed), params=params)
    run = accumulating_step(
        module,
        loss,
        transformation,
        weight_per_step=train.total_weight / steps_per_epoch,
        num_devices=device_axis(training),
    )
    key = jax.random.key(training.noise_seed)

    def run_steps(state: TrainState, epoch: int, start: int) -> Iterator[tuple[TrainState, dict[str, np.ndarray]]]:
        first = start * training.micro_batches
        batches = iter(train.shuffled(seed=training.order_seed, epoch=epoch, start=first))
        steps = iter(lambda: list(itertools.islice(batches, training.micro_batches)), [])
        step = next(steps, None)
        while step is not None:
            state, metrics = run(state, step, key)
            step = next(steps, None)  # made while the device computes
            yield state, {name: np.asarray(value)[None] for name, value in jax.device_get(metrics).items()}

    sums = jax.jit(make_validation_sums(module, loss))

    def validate(state: TrainState) -> Iterator[tuple[Array, Array]]:
        assert validation is not None  # else it is not called
        batches, count = validation.in_order(), validation.num_batches
        for batch in tqdm.tqdm(batches, "validation", count, leave=False, unit="batch", disable=not progress, delay=2):
            yield sums(state.variables, batch)

    return run_epochs(
        state,
        run_steps,
        None if validation is None else validate,
        steps_per_epoch=steps_per_epoch,
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
