"""The training state, and where it starts."""

from __future__ import annotations

import re
from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from routerjax.config import OptimizerConfig
from routerjax.errors import InputError
from routerjax.likelihoods import BRADLEY_TERRY, COLLECTION, Likelihood
from routerjax.typing import Array, PyTree, Query, Variables


class TrainState(flax.struct.PyTreeNode):
    """State that a step reads and writes: plain arrays, never stacked over devices.

    Attributes:
        step: int32 scalar, steps taken.
        variables: what is optimised: ``{"params": the module's}``, and the ``likelihood``'s own where it has any.
        opt_state: the optimiser's own.
    """

    step: Array
    variables: Variables
    opt_state: PyTree


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
    """AdamW on the schedule, after clipping by global norm where that is asked for.

    Parameters below ``encoder`` learn at a rate of their own: ``encoder_rate * layer_decay ** (layers above it)``, and
    not at all below ``frozen_layers``. What is frozen has no part in the norm that is clipped.
    """
    adamw = optax.adamw(learning_rate_schedule(config, num_steps), weight_decay=config.weight_decay)
    clip = [] if config.gradient_clip is None else [optax.clip_by_global_norm(config.gradient_clip)]
    if not has_own_rates(config):
        return optax.chain(*clip, adamw)

    def scaled(updates: PyTree, params: PyTree | None = None) -> PyTree:
        del params
        rates = learning_rates(updates, config)
        return jax.tree.map(lambda update, rate: update * jnp.asarray(rate, update.dtype), updates, rates)

    def thawed(updates: PyTree, params: PyTree | None = None) -> PyTree:
        del params
        rates = learning_rates(updates, config)
        return jax.tree.map(lambda update, rate: update * jnp.asarray(rate != 0.0, update.dtype), updates, rates)

    return optax.chain(optax.stateless(thawed), *clip, adamw, optax.stateless(scaled))


def has_own_rates(config: OptimizerConfig) -> bool:
    """Return True if the encoder's parameters learn otherwise than the head's."""
    return (config.encoder_rate, config.layer_decay, config.frozen_layers) != (1.0, 1.0, 0)


def require_rates(params: PyTree, config: OptimizerConfig) -> None:
    """Raise InputError unless these parameters have the encoder, and the layers, that the configuration speaks of."""
    if has_own_rates(config):
        learning_rates(params, config)


def learning_rates(params: PyTree, config: OptimizerConfig) -> PyTree:
    """Learning-rate multiplier of each parameter: a number, or ``[layers, 1, ...]`` where layers are stacked.

    The encoder is what lies below ``encoder``, at any depth; its layers are ``layer_0``, ``layer_1`` ... or a stack
    ``layers``; what is neither is its embeddings, below all layers.

    Raises:
        InputError: no encoder among the parameters, or fewer layers than are frozen.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [[str(getattr(key, "key", key)) for key in path] for path, _ in leaves]
    numbers = [int(name.removeprefix("layer_")) for path in names for name in path if re.fullmatch(r"layer_\d+", name)]
    stacked = [leaf.shape[0] for path, (_, leaf) in zip(names, leaves, strict=True) if "layers" in path]
    num_layers = max([number + 1 for number in numbers] + stacked, default=0)
    if not any("encoder" in path for path in names):
        raise InputError("optimizer.encoder_rate, layer_decay and frozen_layers are for routers that train an encoder")
    if config.frozen_layers > num_layers:
        got = config.frozen_layers
        raise InputError(f"optimizer.frozen_layers must be at most the encoder's {num_layers}, got {got}")

    def rate(height: int) -> float:
        """Multiplier of the embeddings (height 0) or of a layer (height 1 and up)."""
        is_frozen = config.frozen_layers > 0 and height <= config.frozen_layers
        return 0.0 if is_frozen else config.encoder_rate * config.layer_decay ** (num_layers - height)

    rates = []
    for path, (_, leaf) in zip(names, leaves, strict=True):
        layer = [int(name.removeprefix("layer_")) for name in path if re.fullmatch(r"layer_\d+", name)]
        if "encoder" not in path:
            rates.append(1.0)
        elif "layers" in path:
            heights = [rate(height) for height in range(1, num_layers + 1)]
            rates.append(np.asarray(heights).reshape(-1, *[1] * (leaf.ndim - 1)))
        else:
            rates.append(rate(layer[0] + 1 if layer else 0))
    return jax.tree_util.tree_unflatten(tree, rates)


def create_state(
    module: nn.Module,
    example: Query,
    optimizer: optax.GradientTransformation,
    *,
    key: Array,
    likelihood: Likelihood = BRADLEY_TERRY,
    params: PyTree | None = None,
) -> TrainState:
    """Initialise the parameters for queries of the shape of ``example``, or start from given ones.

    Args:
        module: from a query to scores.
        example: a query of at least one row; its values do not matter.
        optimizer: see :func:`make_optimizer`.
        key: of the parameters.
        likelihood: whose own parameters, if it has any, are trained with the module's.
        params: to start from, such as pretrained ones.
    """
    if params is None:
        params = nn.meta.unbox(module.init(key, example)["params"])
    own = likelihood.initial_params()
    variables = {"params": params, **({COLLECTION: own} if own else {})}
    return TrainState(
        step=jnp.zeros((), jnp.int32), variables=variables, opt_state=optimizer.init(cast(PyTree, variables))
    )
