"""Training: a pure step, its wrappers over devices, checkpoints, and the loop. Knows no router family."""

from routerjax.training.batches import device_axis, fit_batches
from routerjax.training.checkpoint import Checkpoints
from routerjax.training.in_memory import fit
from routerjax.training.loop import FitResult
from routerjax.training.order import epoch_order
from routerjax.training.parallel import (
    accumulating_step,
    jit_step,
    pmap_step,
    require_divisible,
    require_one_process,
    split_batch,
)
from routerjax.training.sources import Batches
from routerjax.training.state import TrainState, create_state, learning_rate_schedule, make_optimizer, require_rates
from routerjax.training.step import loop_steps, make_train_step, take, weighted_loss_sum

__all__ = [
    "Batches",
    "Checkpoints",
    "FitResult",
    "TrainState",
    "accumulating_step",
    "create_state",
    "device_axis",
    "epoch_order",
    "fit",
    "fit_batches",
    "jit_step",
    "learning_rate_schedule",
    "loop_steps",
    "make_optimizer",
    "make_train_step",
    "pmap_step",
    "require_divisible",
    "require_one_process",
    "require_rates",
    "split_batch",
    "take",
    "weighted_loss_sum",
]
