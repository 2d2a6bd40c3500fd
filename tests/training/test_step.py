"""The pure step: masks, weights, and the same update on one device and on eight."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import InputError, models, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BradleyTerry
from routerjax.typing import PreferenceBatch
from tests.training.battles import NUM_MODELS, difference, random_battles

BATTLES = random_battles()
MODULE = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=8)
take = jax.jit(training.take)
WEIGHT = float(np.asarray(BATTLES.weight).sum())


def start(optimizer: optax.GradientTransformation, module: models.MatrixFactorization = MODULE) -> training.TrainState:
    return training.create_state(module, BATTLES.query, optimizer, key=jax.random.key(0))


def flat(tree: object) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def relative(one: object, other: object) -> float:
    return float(np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other)))


def test_padding_is_as_if_it_were_not_there() -> None:
    optimizer = optax.sgd(1.0)
    step = training.jit_step(training.make_train_step(MODULE, BradleyTerry(), optimizer, weight_per_step=WEIGHT))
    rows = jnp.arange(10)
    padded = jnp.concatenate([rows, jnp.full(6, -1)])
    one, metrics = step(start(optimizer), take(BATTLES, rows), jax.random.key(0))
    other, padded_metrics = step(start(optimizer), take(BATTLES, padded), jax.random.key(0))
    assert relative(other.variables, one.variables) < 1e-6
    for name, value in metrics.items():
        np.testing.assert_allclose(padded_metrics[name], value, rtol=1e-5)


def test_metrics_are_sums_and_the_gradient_is_of_the_weighted_mean() -> None:
    optimizer = optax.sgd(1.0)
    state = start(optimizer)
    step = jax.jit(training.make_train_step(MODULE, BradleyTerry(), optimizer, weight_per_step=WEIGHT))
    after, metrics = step(state, BATTLES, jax.random.key(0))

    def mean_loss(variables: dict) -> jax.Array:
        each = BradleyTerry().loss({}, MODULE.apply(variables, BATTLES.query), BATTLES)
        return jnp.average(each, weights=BATTLES.weight)

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(state.variables)
    assert relative(difference(state.variables, after.variables), gradient) < 1e-5
    np.testing.assert_allclose(metrics["weight_sum"], BATTLES.weight.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_sum"] / metrics["weight_sum"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)


def test_a_batch_of_nothing_but_padding_changes_nothing() -> None:
    optimizer = optax.sgd(1.0)
    state = start(optimizer)
    step = jax.jit(training.make_train_step(MODULE, BradleyTerry(), optimizer, weight_per_step=WEIGHT))
    after, metrics = step(state, take(BATTLES, jnp.full(4, -1)), jax.random.key(0))
    assert relative(after.variables, state.variables) == 0
    assert metrics["weight_sum"] == 0


def ragged_batches(count: int) -> list[PreferenceBatch]:
    """Batches of 32 of which the last rows are padding, so that eight devices have unequal weights."""
    orders = [training.epoch_order(seed=seed, epoch=0, num_battles=100, batch_size=32)[-1] for seed in range(count)]
    assert all((order == -1).sum() == 28 for order in orders)
    return [take(BATTLES, jnp.asarray(order)) for order in orders]


def test_eight_devices_have_the_gradient_of_one() -> None:
    assert jax.local_device_count() == 8
    optimizer = optax.sgd(1.0)
    step = training.make_train_step(MODULE, BradleyTerry(), optimizer, weight_per_step=WEIGHT)
    batch = ragged_batches(1)[0]
    initial = jax.tree.map(np.asarray, start(optimizer).variables)
    one, _ = training.jit_step(step)(start(optimizer), batch, jax.random.key(0))
    eight, _ = training.pmap_step(step)(start(optimizer), training.pmap_step.split(batch), jax.random.key(0))
    gradients = [difference(initial, state.variables) for state in (eight, one)]
    assert relative(*gradients) < 1e-5


def test_eight_devices_make_the_update_of_one_over_five_steps() -> None:
    optimizer = training.AdamW(OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.0)).transformation(100)
    step = training.make_train_step(MODULE, BradleyTerry(), optimizer, weight_per_step=WEIGHT)
    initial = jax.tree.map(np.asarray, start(optimizer).variables)
    updates = []
    for wrapper in (training.pmap_step, training.jit_step):
        state, wrapped = start(optimizer), wrapper(step)
        for batch in ragged_batches(5):
            state, metrics = wrapped(state, wrapper.split(batch), jax.random.key(0))
        assert int(state.step) == 5
        assert state.variables["params"]["classifier"].shape == (8,)  # no device axis
        assert metrics["loss_sum"].shape == ()
        updates.append(difference(state.variables, initial))
    assert relative(*updates) < 1e-3


def test_devices_draw_different_noise() -> None:
    module = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=8, noise_std=1.0)
    optimizer = optax.sgd(1.0)

    def step_on(batch: PreferenceBatch) -> training.step.TrainStep:
        weight = float(batch.weight.sum())
        return training.make_train_step(module, BradleyTerry(), optimizer, weight_per_step=weight)

    same = take(BATTLES, jnp.zeros(8, jnp.int32))  # one battle eight times
    alone = take(BATTLES, jnp.zeros(1, jnp.int32))
    on_eight, on_one = training.pmap_step(step_on(same)), training.jit_step(step_on(alone))
    eight, _ = on_eight(start(optimizer, module), training.pmap_step.split(same), jax.random.key(0))
    one, _ = on_one(start(optimizer, module), alone, jax.random.key(0))
    # Were the noise the same on all devices, eight copies would move as one.
    assert relative(eight.variables, one.variables) > 1e-2


def test_a_batch_that_does_not_fall_into_parts_is_refused() -> None:
    with pytest.raises(InputError, match=r"batch size \(30\) must be divisible by device count \(8\)"):
        training.pmap_step.split(take(BATTLES, jnp.arange(30)))
    batch = take(BATTLES, jnp.arange(32))
    with pytest.raises(InputError, match="into 8 parts, each with the queries of its battles"):
        training.pmap_step.split(batch._replace(query_index=batch.query_index[::-1]))


def test_steps_in_a_loop_are_single_steps_in_whatever_parts() -> None:
    optimizer = training.AdamW(OptimizerConfig()).transformation(10)
    step = training.make_train_step(MODULE, BradleyTerry(), optimizer, weight_per_step=WEIGHT)
    order = jnp.asarray(training.epoch_order(seed=0, epoch=0, num_battles=100, batch_size=32))
    run = training.jit_step(training.loop_steps(step))

    def looped(*cuts: int) -> tuple[training.TrainState, dict[str, np.ndarray]]:
        state, total = start(optimizer), {}
        for first, last in itertools.pairwise(cuts):
            part = (BATTLES, order, jnp.int32(first), jnp.int32(last))
            state, metrics = run(state, part, jax.random.key(0))
            total = {name: total.get(name, 0) + np.asarray(value) for name, value in metrics.items()}
        return state, total

    whole, metrics = looped(0, 4)
    jax.tree.map(np.testing.assert_array_equal, looped(0, 1, 3, 4), (whole, metrics))
    assert run._cache_size() == 1
    state, single = start(optimizer), training.jit_step(step)
    for rows in order:
        state, _ = single(state, take(BATTLES, rows), jax.random.key(0))
    assert metrics["loss_sum"].shape == (4,)
    assert relative(whole.variables, state.variables) < 1e-6


def test_every_battle_once_an_epoch_and_another_order_the_next() -> None:
    first, second = (training.epoch_order(seed=3, epoch=epoch, num_battles=10, batch_size=4) for epoch in (0, 1))
    assert sorted(first.ravel().tolist()) == [-1, -1, *range(10)]
    assert first.tolist() != second.tolist()
    again = training.epoch_order(seed=3, epoch=1, num_battles=10, batch_size=4)
    np.testing.assert_array_equal(again, second)


def test_the_schedule_warms_up_and_decays() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_fraction=0.1, final_fraction=0.5)
    schedule = training.learning_rate_schedule(config, 100)
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10, 55, 100)], [0, 0.05, 0.1, 0.075, 0.05], rtol=1e-6)
    flat = training.learning_rate_schedule(OptimizerConfig(learning_rate=0.1, warmup_fraction=0.0), 1)
    np.testing.assert_allclose(flat(0), 0.1, rtol=1e-6)
