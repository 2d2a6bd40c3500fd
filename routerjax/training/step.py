"""Pure train steps; :mod:`routerjax.training.parallel` spreads them over devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from routerjax.errors import InputError
from routerjax.likelihoods import COLLECTION, Likelihood
from routerjax.scoring import apply_module
from routerjax.training.optimizer import stochastically_rounded
from routerjax.training.parallel import Wrapper
from routerjax.training.state import TrainState, noise_streams
from routerjax.typing import Array, PreferenceBatch, PyTree, Variables

Metrics = dict[str, Array]
BatchT = TypeVar("BatchT", contravariant=True)


class TrainStep(Protocol[BatchT]):
    """``(state, batch, key) -> (state, metrics)``; ``axis_name`` where it runs under a mapped axis."""

    def __call__(
        self, state: TrainState, batch: BatchT, key: Array, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """Take one step, or many."""
        ...


class Sums(NamedTuple):
    """Sums over battles, to be added over micro-batches and devices.

    Attributes:
        loss: float32 scalar, of weight x loss.
        weight: float32 scalar.
        gradient: of ``loss`` by the trained variables, in float32 whatever type they are of.
    """

    loss: Array
    weight: Array
    gradient: PyTree


def weighted_loss_sum(
    likelihood: Likelihood, variables: Variables, scores: Float[Array, "prompts outputs"], battles: PreferenceBatch
) -> Float[Array, ""]:
    """Sum of weight x loss; battles of weight 0 have no part in it or in its gradient, whatever their loss is.

    Args:
        likelihood: of the battles.
        variables: among which are the likelihood's own parameters, if it has any.
        scores: one row for each query of ``battles``.
        battles: with their weights, of which 0 marks padding.
    """
    counts = battles.weight > 0
    # 0 x infinity is NaN, and a `where` over the product leaves it in the gradient. What does not count is therefore
    # fought on a query of its own, with scores of 0, and ends in a tie.
    tie = jnp.zeros_like(battles.outcome).at[:, 1].set(1.0)
    finite = battles._replace(
        query_index=jnp.where(counts, battles.query_index, scores.shape[0]),
        outcome=jnp.where(counts[:, None], battles.outcome, tie),
    )
    extended = jnp.concatenate([scores, jnp.zeros_like(scores[:1])])
    each = likelihood.loss(variables.get(COLLECTION, {}), extended, finite)
    return jnp.sum(jnp.where(counts, battles.weight * each, 0.0))


def make_sums(module: nn.Module, likelihood: Likelihood) -> Callable[[TrainState, PreferenceBatch, Array], Sums]:
    """``(state, batch, key) -> sums`` of the loss, the weights and the gradients of one batch on one device."""

    def sums(state: TrainState, batch: PreferenceBatch, key: Array) -> Sums:
        def loss_sum_of(trained: Variables) -> Float[Array, ""]:
            variables = {**state.fixed, **trained}
            scores = apply_module(module, variables, batch.query, deterministic=False, rngs=noise_streams(key))
            return weighted_loss_sum(likelihood, variables, scores, batch)

        loss_sum, gradient = jax.value_and_grad(loss_sum_of)(state.trained)
        return Sums(loss_sum, jnp.sum(batch.weight), optax.tree.cast(gradient, jnp.float32))

    return sums


def make_update(
    optimizer: optax.GradientTransformation, weight_per_step: float, *, skip_non_finite: bool = False
) -> Callable[..., tuple[TrainState, Metrics]]:
    """``(state, sums, *, axis_name=None) -> (state, metrics)``: one update of the parameters.

    The gradient is the sum over the step's battles and over the axis, divided by ``weight_per_step``: a constant of the
    run rather than the step's own weight, so that a battle weighs the same in whatever step it is.

    Args:
        optimizer: of the parameters.
        weight_per_step: the mean weight of a step: that of all battles over the number of steps of an epoch.
        skip_non_finite: leave parameters and moments as they are where the loss or the norm of the gradient is not
            finite.

    Returns:
        A function; ``metrics`` are ``loss_sum`` and ``weight_sum`` (divide on the host), and ``gradient_norm``; with
        ``skip_non_finite`` also ``skipped``, 0 or 1, where the others are 0.

    Raises:
        InputError: ``weight_per_step`` is not positive: all battles have weight 0.
    """
    if not 0 < weight_per_step < math.inf:
        raise InputError(f"the weights of the battles must have a positive, finite sum, got {weight_per_step} a step")

    def update(state: TrainState, sums: Sums, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        gradient = jax.tree.map(lambda leaf: leaf / weight_per_step, sums.gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained)
        updated = (_updated(state.trained, updates, state.step), opt_state)
        metrics = {"loss_sum": sums.loss, "weight_sum": sums.weight, "gradient_norm": optax.tree.norm(gradient)}
        if skip_non_finite:
            # Both are of the sums over all devices, which therefore agree.
            is_finite = jnp.isfinite(metrics["loss_sum"]) & jnp.isfinite(metrics["gradient_norm"])
            before = (state.trained, state.opt_state)
            updated = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, before)
            metrics = {name: jnp.where(is_finite, value, 0.0) for name, value in metrics.items()}
            metrics["skipped"] = 1 - is_finite.astype(jnp.int32)
        # A step that is skipped counts as one: the next has battles and noise of its own.
        return state.replace(step=state.step + 1, trained=updated[0], opt_state=updated[1]), metrics

    return update


def _updated(params: PyTree, updates: PyTree, step: Array) -> PyTree:
    """Add updates; to parameters in bfloat16 rounded up or down at random, in the same way wherever they are.

    Most updates are less than half a bit of a parameter in bfloat16: rounded to the nearest, it would stay where it is.
    """
    leaves, structure = jax.tree.flatten(params)
    if all(leaf.dtype != jnp.bfloat16 for leaf in leaves):
        return optax.apply_updates(params, updates)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), len(leaves))

    def updated(param: Array, update: Array, key: Array) -> Array:
        if param.dtype != jnp.bfloat16:
            return param + update.astype(param.dtype)
        return stochastically_rounded(param.astype(jnp.float32) + update.astype(jnp.float32), key)

    return structure.unflatten(map(updated, leaves, structure.flatten_up_to(updates), keys))


def step_key(key: Array, state: TrainState, *, axis_name: str | None = None) -> Array:
    """The run's key folded with the step, then with the place on the mapped axis: a resumed run draws the same."""
    key = jax.random.fold_in(key, state.step)
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def make_train_step(
    module: nn.Module,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    weight_per_step: float,
    skip_non_finite: bool = False,
) -> TrainStep[PreferenceBatch]:
    """A pure step down the gradient of the sum of weight x loss over ``weight_per_step``.

    Sums are added over the mapped axis before anything is divided, so that many devices make the update of one. With
    ``weight_per_step`` as :func:`make_update` describes it, the gradients of an epoch have the gradient of the weighted
    mean of the loss as their mean, however the battles are grouped.

    Args:
        module: from a query to scores.
        likelihood: its loss is minimised.
        optimizer: of the parameters.
        weight_per_step, skip_non_finite: see :func:`make_update`.

    Returns:
        A function to ``(state, metrics)``, see :func:`make_update`.
    """
    sums = make_sums(module, likelihood)
    update = make_update(optimizer, weight_per_step, skip_non_finite=skip_non_finite)

    def train_step(
        state: TrainState, batch: PreferenceBatch, key: Array, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        part = sums(state, batch, step_key(key, state, axis_name=axis_name))
        return update(state, part, axis_name=axis_name)

    return train_step


def accumulating_step(
    module: nn.Module,
    likelihood: Likelihood,
    optimizer: optax.GradientTransformation,
    *,
    weight_per_step: float,
    wrapper: Wrapper,
    skip_non_finite: bool = False,
) -> Callable[[TrainState, Iterable[PreferenceBatch], Array], tuple[TrainState, Metrics]]:
    """Make a step over micro-batches, whose sums are added one after another: one is held in memory at a time.

    They may differ in shape. Each shape is compiled once, and the update once, so that any mixture of shapes costs no
    further compilation. Devices add up their own sums, and exchange them once a step. The batches are on the devices,
    as :meth:`Wrapper.split` sends them.

    Args:
        module, likelihood, optimizer, weight_per_step, skip_non_finite: see :func:`make_train_step`.
        wrapper: how it runs on devices.
    """
    sums = make_sums(module, likelihood)
    update = make_update(optimizer, weight_per_step, skip_non_finite=skip_non_finite)
    total: Sums | None = None

    def add(
        total: Sums, state: TrainState, batch: PreferenceBatch, key: Array, index: Array, axis_name: str | None = None
    ) -> tuple[Sums, Metrics]:
        key = jax.random.fold_in(step_key(key, state, axis_name=axis_name), index)
        return jax.tree.map(jnp.add, total, sums(state, batch, key)), {}

    def finish(carry: tuple[TrainState, Sums], axis_name: str | None = None) -> tuple[tuple[TrainState, Sums], Metrics]:
        state, metrics = update(*carry, axis_name=axis_name)
        return (state, jax.tree.map(jnp.zeros_like, carry[1])), metrics

    add_part = wrapper(add, (0, None, 0, None, None))
    finish_step = wrapper(finish, ((None, 0),))

    def run(state: TrainState, batches: Iterable[PreferenceBatch], key: Array) -> tuple[TrainState, Metrics]:
        nonlocal total
        if total is None:
            zero: Any = np.zeros((), np.float32)
            total = wrapper.zeros(Sums(zero, zero, gradient_shapes(state)))
        for index, batch in enumerate(batches):
            total, _ = add_part(total, state, batch, key, np.int32(index))
        (state, total), metrics = finish_step((state, total))
        return state, metrics

    return run


def gradient_shapes(state: TrainState) -> PyTree:
    """Shapes and shardings of the sums of gradients: float32, whatever type the parameters are of."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), state.trained
    )


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


StepRange = tuple[PreferenceBatch, Int[Array, "steps batch"], Int[Array, ""] | np.int32, Int[Array, ""] | np.int32]
"""Battles, the indices of each step's battles, the first step, and the one to stop before."""


def loop_steps(train_step: TrainStep[PreferenceBatch]) -> TrainStep[StepRange]:
    """Many steps in one program: ``(state, (battles, indices [steps, batch], start, stop), key)``.

    It takes the steps from ``start`` to before ``stop``, which are not compiled in, and returns the state and metrics
    ``[steps]``, which are 0 for the other steps.
    """

    def run(
        state: TrainState, batch: StepRange, key: Array, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        battles, indices, start, stop = batch

        def step(state: TrainState, index: Array | np.int32) -> tuple[TrainState, Metrics]:
            return train_step(state, take(battles, indices[index]), key, axis_name=axis_name)

        def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, of_step = step(state, index)
            return state, {name: leaf.at[index].set(of_step[name]) for name, leaf in metrics.items()}

        shapes = jax.eval_shape(step, state, start)[1]
        zeros = {name: jnp.zeros(indices.shape[0], leaf.dtype) for name, leaf in shapes.items()}
        return jax.lax.fori_loop(start, stop, body, (state, zeros))

    return run


def make_validation_sums(
    module: nn.Module, likelihood: Likelihood
) -> Callable[[Variables, PreferenceBatch], tuple[Array, Array]]:
    """``(variables, battles) -> (weighted sum of the loss, sum of the weights)``."""

    def sums(variables: Variables, battles: PreferenceBatch) -> tuple[Array, Array]:
        scores = apply_module(module, variables, battles.query)
        return weighted_loss_sum(likelihood, variables, scores, battles), jnp.sum(battles.weight)

    return sums
