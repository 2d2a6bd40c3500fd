"""The training state, and where it starts."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import optax

from routerjax.config import OptimizerConfig
from routerjax.typing import Array, PyTree, Query, Variables


class TrainState(flax.struct.PyTreeNode):
    """What a step reads and writes: plain arrays, never stacked over devices.

    Attributes:
        step: int32 scalar, steps taken.
        params: what is optimised.
        memory: what is stored and never optimised; empty where a family has none.
        opt_state: the optimiser's own.
    """

    step: Array
    params: PyTree
    memory: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> Variables:
        """What ``module.apply`` takes."""
        return {"params": self.params, "memory": self.memory} if self.memory else {"params": self.params}


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to ``final_fraction`` of it at ``num_steps``."""
    warmup_steps = round(config.warmup_fraction * num_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(num_steps, warmup_steps + 1),
        end_value=config.final_fraction * config.learning_rate,
    )


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW on the schedule, after clipping by global norm where that is asked for."""
    adamw = optax.adamw(learning_rate_schedule(config, num_steps), weight_decay=config.weight_decay)
    if config.gradient_clip is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), adamw)


def create_state(
    module: nn.Module,
    example: Query,
    optimizer: optax.GradientTransformation,
    *,
    key: Array,
    memory: PyTree | None = None,
) -> TrainState:
    """Initialise the parameters for queries of the shape of ``example``.

    Args:
        module: from a query to scores.
        example: a query of at least one row; its values do not matter.
        optimizer: see :func:`make_optimizer`.
        key: of the parameters.
        memory: the module's ``memory`` collection, for families that have one.
    """
    memory = {} if memory is None else memory
    params = nn.meta.unbox(module.init(key, example)["params"])
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, memory=memory, opt_state=optimizer.init(params))
