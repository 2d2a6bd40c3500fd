"""AdamW as a configuration describes it, with a learning rate of its own for each layer of an encoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from routerjax.config import OptimizerConfig
from routerjax.errors import InputError
from routerjax.likelihoods import COLLECTION, Likelihood
from routerjax.typing import Array, PyTree


@dataclass(frozen=True)
class AdamW:
    """AdamW on a schedule, after clipping by global norm where that is asked for.

    A parameter at depth d of n learns at ``encoder_rate * layer_decay ** (n - d)`` of the learning rate, and not at all
    where ``d <= frozen_layers``; one of no depth learns at all of it. What is frozen has no part in the norm that is
    clipped, and no moments unless its layers are stacked with others that learn.

    Attributes:
        config: of the optimiser.
        depths: of each parameter: an integer, an array that broadcasts to it where layers are stacked, or None of what
            is no layer; see :func:`routerjax.families.layer_depths`. None says that there are no layers.

    Raises:
        InputError: rates by layer, and no layers; or more layers to freeze than there are.
    """

    config: OptimizerConfig
    depths: PyTree = None

    def __post_init__(self) -> None:
        self.rates()

    def rates(self) -> PyTree:
        """Learning-rate multiplier of each parameter; 1.0 for all where they learn alike."""
        config = self.config
        if (config.encoder_rate, config.layer_decay, config.frozen_layers) == (1.0, 1.0, 0):
            return 1.0
        largest = [int(np.max(depth)) for depth in jax.tree.leaves(self.depths)]
        if not largest:
            raise InputError(
                "optimizer.encoder_rate, layer_decay and frozen_layers are for routers that train an encoder"
            )
        if config.frozen_layers > max(largest):
            got = config.frozen_layers
            raise InputError(f"optimizer.frozen_layers must be at most the encoder's {max(largest)}, got {got}")

        def rate(depth: int | np.ndarray | None) -> float | np.ndarray:
            if depth is None:
                return 1.0
            is_frozen = config.frozen_layers > 0 and np.less_equal(depth, config.frozen_layers)
            return np.where(is_frozen, 0.0, config.encoder_rate * config.layer_decay ** (max(largest) - depth))

        return jax.tree.map(rate, self.depths, is_leaf=lambda depth: depth is None)

    def with_likelihood(self, likelihood: Likelihood) -> AdamW:
        """Copy for ``{"params": ..., "likelihood": ...}``, the latter where the likelihood has parameters.

        Args:
            likelihood: its parameters are of no depth; ``depths`` are those of ``params``.
        """
        no_depths = jax.tree.map(lambda _: None, likelihood.initial_params())
        learned = {COLLECTION: no_depths} if no_depths else {}
        return dataclasses.replace(self, depths={"params": self.depths, **learned})

    def schedule(self, num_steps: int) -> optax.Schedule:
        """Learning rate of a run of so many steps."""
        return learning_rate_schedule(self.config, num_steps)

    def transformation(self, num_steps: int) -> optax.GradientTransformation:
        """Optax transformation of trees of the form of ``depths``, for a run of so many steps."""
        config = self.config
        clip = [] if config.gradient_clip is None else [optax.clip_by_global_norm(config.gradient_clip)]
        adamw = optax.chain(
            _with_moments_in(jnp.dtype(config.moments_dtype), optax.scale_by_adam()),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(self.schedule(num_steps)),
        )
        rates, learner = self.rates(), optax.chain(*clip, adamw)
        if isinstance(rates, float):
            return learner
        labels = jax.tree.map(lambda rate: "learns" if np.any(rate) else "frozen", rates)
        parts = optax.partition({"learns": learner, "frozen": optax.set_to_zero()}, labels)
        return optax.chain(_scale(jax.tree.map(lambda rate: rate != 0.0, rates)), parts, _scale(rates))


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


def _scale(rates: PyTree) -> optax.GradientTransformation:
    def update(updates: PyTree, params: PyTree | None = None) -> PyTree:
        del params
        return jax.tree.map(lambda update, rate: update * jnp.asarray(rate, update.dtype), updates, rates)

    return optax.stateless(update)


def _with_moments_in(dtype: jnp.dtype, adam: Any) -> optax.GradientTransformation:
    """Adam in float32, whatever type the parameters are of, whose moments are stored in ``dtype``."""

    def cast(state: Any, dtype: jnp.dtype) -> Any:
        return state._replace(mu=optax.tree.cast(state.mu, dtype), nu=optax.tree.cast(state.nu, dtype))

    def init(params: PyTree) -> PyTree:
        return cast(adam.init(params), dtype)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        wide = cast(state, jnp.dtype("float32"))
        updates, wide = adam.update(optax.tree.cast(updates, jnp.float32), wide, params)
        if dtype == jnp.float32:
            return updates, wide
        leaves, structure = jax.tree.flatten((wide.mu, wide.nu))
        keys = jax.random.split(jax.random.key(wide.count), len(leaves))
        mu, nu = structure.unflatten(map(stochastically_rounded, leaves, keys))
        return updates, wide._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def stochastically_rounded(leaf: Array, key: Array) -> Array:
    """Round float32 to bfloat16, up or down in proportion to the nearness.

    A second moment decays by a thousandth a step, which is less than half a bit of bfloat16: rounded to the nearest, it
    would stay where it is.
    """
    # The 16 bits that are dropped carry into the ones that are kept as often as they are large.
    noise = jax.random.bits(key, leaf.shape, jnp.uint16).astype(jnp.uint32)
    kept = (jax.lax.bitcast_convert_type(leaf, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)
