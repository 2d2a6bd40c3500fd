"""Training: a pure step, its wrappers over devices, checkpoints, and the loop. Knows no router family."""

from routerjax.order import epoch_order
from routerjax.partitioning import require_divisible
from routerjax.training.ahead import StepMemory, step_memory
from routerjax.training.checkpoint import Checkpoints
from routerjax.training.loop import FitResult, Resume, fit
from routerjax.training.mesh import mesh_step, wrapper_of
from routerjax.training.optimizer import AdamW, learning_rate_schedule
from routerjax.training.parallel import Wrapper, jit_step, pmap_step
from routerjax.training.profile import require_within
from routerjax.training.sources import Batches, steps_per_epoch
from routerjax.training.state import TrainState, create_state
from routerjax.training.step import accumulating_step, loop_steps, make_train_step, take, weighted_loss_sum

__all__ = [
    "AdamW",
    "Batches",
    "Checkpoints",
    "FitResult",
    "Resume",
    "StepMemory",
    "TrainState",
    "Wrapper",
    "accumulating_step",
    "create_state",
    "epoch_order",
    "fit",
    "jit_step",
    "learning_rate_schedule",
    "loop_steps",
    "make_train_step",
    "mesh_step",
    "pmap_step",
    "require_divisible",
    "require_within",
    "step_memory",
    "steps_per_epoch",
    "take",
    "weighted_loss_sum",
    "wrapper_of",
]
