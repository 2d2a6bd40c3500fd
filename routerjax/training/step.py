"""One pure train step; how it is spread over devices is decided elsewhere."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from routerjax.training.state import TrainState
from routerjax.typing import Array, PreferenceBatch, PreferenceLoss, PyTree

Metrics = dict[str, Array]
BatchT = TypeVar("BatchT", contravariant=True)


class TrainStep(Protocol[BatchT]):
    """``(state, batch, key) -> (state, metrics)``; ``axis_name`` where it runs under a mapped axis."""

    def __call__(
        self, state: TrainState, batch: BatchT, key: Array, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """Take one step, or one scan of steps."""
        ...


def make_train_step(
    module: nn.Module,
    loss: PreferenceLoss,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: bool = False,
) -> TrainStep[PreferenceBatch]:
    """A pure step on the weighted mean of ``loss``.

    The step's key is ``fold_in(key, state.step)``, then the index on the mapped axis, so that a resumed run draws what
    the uninterrupted one would have drawn. Sums of gradients, losses and weights are added over the axis BEFORE the one
    division, so that devices with unequal weights (padding) give exactly the mean of the global batch.

    Args:
        module: a router family.
        loss: per battle.
        optimizer: of the parameters.
        micro_batches: whether a batch's leaves have a leading axis of micro-batches, whose sums are accumulated one
            after another, so that only one of them is held in memory at a time.

    Returns:
        A function to ``(state, metrics)``. ``metrics``: ``loss_sum`` and ``weight_sum`` (divide on the host),
        ``gradient_norm`` of the mean gradient.
    """

    def train_step(
        state: TrainState, batch: PreferenceBatch, key: Array, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        def sums(part: PreferenceBatch, key: Array) -> tuple[Array, PyTree, Array]:
            dropout_key, noise_key = jax.random.split(key)

            def loss_sum_of(params: PyTree) -> Float[Array, ""]:
                variables = state.replace(params=params).variables
                rngs = {"dropout": dropout_key, "noise": noise_key}
                scores = cast(Array, module.apply(variables, part.query, deterministic=False, rngs=rngs))
                return jnp.sum(part.weight * loss(scores, part))

            return *jax.value_and_grad(loss_sum_of)(state.params), jnp.sum(part.weight)

        if micro_batches:
            keys = jax.random.split(key, batch.weight.shape[0])
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.params)

            def add(total: PyTree, part: tuple[PreferenceBatch, Array]) -> tuple[PyTree, None]:
                return jax.tree.map(jnp.add, total, sums(*part)), None

            start = (jnp.zeros(()), zeros, jnp.zeros(()))
            (loss_sum, gradient_sum, weight_sum), _ = jax.lax.scan(add, start, (batch, keys))
        else:
            loss_sum, gradient_sum, weight_sum = sums(batch, key)
        if axis_name is not None:
            loss_sum, gradient_sum, weight_sum = jax.lax.psum((loss_sum, gradient_sum, weight_sum), axis_name)
        # A batch of nothing but padding has no gradient; dividing by 1 keeps it at zero rather than 0 / 0.
        denominator = jnp.where(weight_sum > 0, weight_sum, 1.0)
        gradient = jax.tree.map(lambda leaf: leaf / denominator, gradient_sum)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )
        metrics = {"loss_sum": loss_sum, "weight_sum": weight_sum, "gradient_norm": optax.tree.norm(gradient)}
        return state, metrics

    return train_step


def take(battles: PreferenceBatch, indices: Int[Array, "batch"]) -> PreferenceBatch:
    """The battles at ``indices``, each with its query; an index of -1 is padding and gets weight 0."""
    is_padding = indices < 0
    rows = jnp.where(is_padding, 0, indices)
    query_rows = battles.query_index[rows]
    return PreferenceBatch(
        query=jax.tree.map(lambda leaf: leaf[query_rows], dict(battles.query)),
        query_index=jnp.arange(indices.shape[0], dtype=jnp.int32),
        model_a=battles.model_a[rows],
        model_b=battles.model_b[rows],
        outcome=battles.outcome[rows],
        weight=jnp.where(is_padding, 0.0, battles.weight[rows]),
    )


def scan_steps(
    train_step: TrainStep[PreferenceBatch],
) -> TrainStep[tuple[PreferenceBatch, Int[Array, "steps batch"]]]:
    """Many steps in one program: ``(state, (battles, indices [steps, batch]), key) -> (state, metrics [steps])``."""

    def run(
        state: TrainState,
        batch: tuple[PreferenceBatch, Int[Array, "steps batch"]],
        key: Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        battles, indices = batch

        def body(carry: TrainState, rows: Int[Array, "batch"]) -> tuple[TrainState, Metrics]:
            return train_step(carry, take(battles, rows), key, axis_name=axis_name)

        return jax.lax.scan(body, state, indices)

    return run
