"""Training on battles that lie on the device: routers of embeddings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.training.loop import FitResult, run_epochs
from routerjax.training.order import epoch_order
from routerjax.training.parallel import jit_step, pmap_sharding, pmap_step, require_divisible, require_one_process
from routerjax.training.sources import Resident
from routerjax.training.state import TrainState, create_state, make_optimizer
from routerjax.training.step import loop_steps, make_train_step
from routerjax.typing import PreferenceBatch

# One call of the program takes about so many steps that Ctrl-C and the progress bar wait no longer than this.
SECONDS_A_CALL = 0.5
# Of what loop_steps takes: battles and the first and last step are all devices', the order is split.
BATCH_AXES = (None, 1, None, None)


def fit(
    module: nn.Module,
    train: PreferenceBatch,
    validation: PreferenceBatch | None,
    *,
    likelihood: Likelihood = BRADLEY_TERRY,
    optimizer: OptimizerConfig,
    training: TrainingConfig,
    directory: str | Path,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Minimise the weighted mean of the loss over ``train``; keep the parameters that are best on ``validation``.

    The data lies on the device, and any number of steps is one program. The same seeds give the same parameters bit for
    bit on CPU, also when the run is interrupted, within an epoch too, and resumed.

    Args:
        module: from a query to scores; its family does not matter here.
        train: all training battles.
        validation: held-out battles, or None to keep the last parameters.
        likelihood: its loss is minimised, and its own parameters are trained too.
        optimizer: AdamW and its schedule.
        training: epochs, batch size, seeds, devices.
        directory: for ``checkpoints/``, ``metrics.jsonl`` and TensorBoard files.
        resume: go on from the newest checkpoint in ``directory``; from the start where there is none yet.
        progress: show a progress bar.

    Raises:
        InputError: the directory holds a run already, or one of another configuration; the batch size does not divide
            over the devices; the weights sum to 0; the loss stops being finite; more than one JAX process.
        KeyboardInterrupt: Ctrl-C was pressed; what was finished is saved.
        OSError: a checkpoint or the metrics cannot be written.
    """
    require_one_process()
    num_battles, batch_size = train.query_index.shape[0], training.batch_size
    num_devices = jax.local_device_count()
    if training.devices == "pmap":
        require_divisible(batch_size, num_devices)
    steps_per_epoch = -(-num_battles // batch_size)
    transformation = make_optimizer(optimizer, steps_per_epoch * training.epochs)
    example = jax.tree.map(lambda leaf: leaf[:1], dict(train.query))
    state = create_state(module, example, transformation, key=jax.random.key(training.init_seed), likelihood=likelihood)
    weight_per_step = Resident(train).total_weight / steps_per_epoch
    step = loop_steps(make_train_step(module, likelihood, transformation, weight_per_step=weight_per_step))
    noise_key = jax.random.key(training.noise_seed)
    if training.devices == "pmap":
        run, group, order_sharding = pmap_step(step, batch_axes=BATCH_AXES), (num_devices, -1), pmap_sharding(1)
        train, validation, state, noise_key = jax.device_put((train, validation, state, noise_key), pmap_sharding())
    else:
        run, group, order_sharding = jit_step(step), (-1,), None
    count = 1

    def run_steps(state: TrainState, epoch: int, start: int) -> Iterator[tuple[TrainState, dict[str, np.ndarray]]]:
        nonlocal count
        order = epoch_order(seed=training.order_seed, epoch=epoch, num_battles=num_battles, batch_size=batch_size)
        order = jax.device_put(order.reshape(steps_per_epoch, *group), order_sharding)
        while start < steps_per_epoch:
            stop, began = min(start + count, steps_per_epoch), time.perf_counter()
            state, metrics = run(state, (train, order, np.int32(start), np.int32(stop)), noise_key)
            yield state, {name: leaf[start:stop] for name, leaf in jax.device_get(metrics).items()}
            seconds = time.perf_counter() - began
            if seconds > SECONDS_A_CALL:
                count = max(1, count // 2)
            elif seconds < SECONDS_A_CALL / 2:
                count = min(2 * count, steps_per_epoch)
            start = stop

    return run_epochs(
        state,
        run_steps,
        Resident(train),
        None if validation is None else Resident(validation),
        module=module,
        likelihood=likelihood,
        steps_per_epoch=steps_per_epoch,
        optimizer=optimizer,
        training=training,
        directory=directory,
        resume=resume,
        progress=progress,
    )
