"""Every battle weighs what its weight says, whatever step, device, micro-batch or length it falls into."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import InputError, data, losses, training
from routerjax.config import TrainingConfig
from routerjax.likelihoods import COLLECTION, BradleyTerry, Davidson, Likelihood, RaoKupper
from routerjax.typing import PreferenceBatch
from tests.data.test_loader import token_battles
from tests.training.battles import NUM_MODELS, random_battles

NUM_TOKENS = 99
SGD = optax.sgd(1.0)
BATTLES, TOKEN_IDS = token_battles()


class Linear(nn.Module):
    """Scores that are linear in the parameters, of embeddings or of the counts of tokens."""

    @nn.compact
    def __call__(self, query: dict) -> jax.Array:
        if "embedding" in query:
            return nn.Dense(NUM_MODELS, use_bias=False)(query["embedding"])
        present = jax.nn.one_hot(query["token_ids"], NUM_TOKENS) * query["attention_mask"][..., None]
        return nn.Dense(3, use_bias=False)(present.sum(axis=1))


class LinearLoss(BradleyTerry):
    """Its gradient is the same for all parameters: an epoch of SGD adds up the gradients at the first ones."""

    def loss(self, params: dict, scores: jax.Array, batch: PreferenceBatch) -> jax.Array:
        """Linear in the scores."""
        return (0.5 - batch.label) * losses.margin(scores, batch)


def mean_gradient(query: dict, battles: PreferenceBatch, params: dict) -> np.ndarray:
    def mean(params: dict) -> jax.Array:
        return jnp.average(
            LinearLoss().loss({}, Linear().apply({"params": params}, query), battles), weights=battles.weight
        )

    return np.asarray(jax.jit(jax.grad(mean))(params)["Dense_0"]["kernel"])


def assert_same_direction_and_size(update: np.ndarray, gradient: np.ndarray, num_steps: int) -> None:
    np.testing.assert_allclose(update / num_steps, gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("devices", ["jit", "pmap"])
@pytest.mark.parametrize(("micro_batches", "lengths"), [(1, (4, 8, 16)), (3, (4, 8, 16)), (2, (16,))])
def test_gradients_of_an_epoch_on_tokens(devices: str, micro_batches: int, lengths: tuple[int, ...]) -> None:
    config = TrainingConfig(epochs=1, devices=devices, micro_batches=micro_batches)
    num_devices = training.wrapper_of(config).num_parts
    batches = data.TokenBatches(BATTLES, TOKEN_IDS, lengths=lengths, batch_tokens=32, num_devices=num_devices)
    params = {"Dense_0": {"kernel": np.random.default_rng(0).standard_normal((NUM_TOKENS, 3)).astype(np.float32)}}
    result = training.fit(
        Linear(), batches, variables={"params": params}, likelihood=LinearLoss(), optimizer=SGD, training=config
    )
    update = params["Dense_0"]["kernel"] - result.variables["params"]["Dense_0"]["kernel"]
    one_batch = data.TokenBatches(BATTLES, TOKEN_IDS, lengths=(16,), batch_tokens=10_000)
    (everything,) = one_batch.in_order()
    gradient = mean_gradient(everything.query, everything, params)
    assert_same_direction_and_size(update, gradient, -(-batches.num_batches // micro_batches))


@pytest.mark.parametrize("devices", ["jit", "pmap"])
@pytest.mark.parametrize("batch_size", [16, 48, 104])
def test_gradients_of_an_epoch_on_embeddings(devices: str, batch_size: int) -> None:
    battles = random_battles()
    battles = battles._replace(weight=battles.weight.at[:7].set(40.0))
    query = {"embedding": battles.query["embedding"]}
    config = TrainingConfig(epochs=1, batch_size=batch_size, devices=devices)
    params = jax.device_get(jax.jit(Linear().init)(jax.random.key(config.init_seed), query)["params"])
    result = training.fit(
        Linear(), battles._replace(query=query), likelihood=LinearLoss(), optimizer=SGD, training=config
    )
    update = params["Dense_0"]["kernel"] - result.variables["params"]["Dense_0"]["kernel"]
    assert_same_direction_and_size(update, mean_gradient(query, battles, params), -(-100 // batch_size))


def test_battles_without_weight_are_refused() -> None:
    battles = random_battles()
    with pytest.raises(InputError, match="weights of the battles must have a positive, finite sum"):
        training.fit(
            Linear(), battles._replace(weight=0 * battles.weight), likelihood=LinearLoss(), optimizer=SGD,
            training=TrainingConfig(epochs=1),
        )  # fmt: skip


def test_a_step_may_hold_nothing_but_battles_without_weight() -> None:
    battles = random_battles()
    result = training.fit(
        Linear(), battles._replace(weight=jnp.zeros(100).at[50].set(1.0)), likelihood=LinearLoss(), optimizer=SGD,
        training=TrainingConfig(epochs=1, batch_size=16),
    )  # fmt: skip
    assert np.isfinite(result.history[0]["loss"])


@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_what_has_no_weight_poisons_neither_sum_nor_gradient(poison: float) -> None:
    """Its scores, its outcome and hence its loss are not finite; weight 0 is padding all the same."""
    battles = random_battles(num_prompts=4, num_battles=6)
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((4, NUM_MODELS)), jnp.float32)
    on_last = np.asarray(battles.query_index) == 3
    weight = jnp.where(on_last, 0.0, battles.weight)
    counted = battles._replace(weight=weight)
    poisoned = counted._replace(outcome=jnp.where(on_last[:, None], poison, counted.outcome))
    assert on_last.any()
    assert not on_last.all()

    for likelihood in (BradleyTerry(), RaoKupper(), Davidson()):
        variables = {COLLECTION: likelihood.initial_params()}

        def loss_sum(
            scores: jax.Array,
            battles: PreferenceBatch,
            likelihood: Likelihood = likelihood,
            variables: dict = variables,
        ) -> jax.Array:
            return training.weighted_loss_sum(likelihood, variables, scores, battles)

        both = jax.jit(jax.value_and_grad(loss_sum))
        value, gradient = both(scores.at[3].set(poison), poisoned)
        expected, expected_gradient = both(scores, counted)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(gradient, expected_gradient)
        assert np.isfinite(expected)
        assert np.all(np.asarray(gradient[3]) == 0)
