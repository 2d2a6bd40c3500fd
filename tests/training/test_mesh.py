"""A mesh trains as one device does, with sharded parameters and moments, and its checkpoints fit any other mesh."""

from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import InputError, data, models, partitioning, training
from routerjax.config import OptimizerConfig, TrainingConfig
from tests.data.test_loader import token_battles
from tests.training.battles import NUM_MODELS, random_battles

ENCODER = models.BertEncoder(
    vocab_size=100, width=8, num_layers=1, num_heads=2, mlp_dim=16, max_positions=16, dropout_rate=0.0,
    attention_dropout_rate=0.0, initializer_range=0.3,
)  # fmt: skip
BERT = models.BertRouter(ENCODER, num_models=3, head="mean", dropout_rate=0.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.0, final_fraction=1.0)
BATTLES, TOKEN_IDS = token_battles()


def batches(num_devices: int) -> data.TokenBatches:
    # One step an epoch, so that the order of the battles is that on one device.
    return data.TokenBatches(BATTLES, TOKEN_IDS, lengths=(16,), batch_tokens=1024, num_devices=num_devices)


def fit(wrapper: training.Wrapper, params: dict) -> training.FitResult:
    return training.fit(
        BERT,
        batches(wrapper.num_parts),
        batches(1),
        optimizer=OPTIMIZER,
        training=TrainingConfig(epochs=3),
        wrapper=wrapper,
        variables={"params": params},
    )


@pytest.fixture(scope="module")
def params() -> dict:
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    return jax.device_get(nn.meta.unbox(jax.jit(BERT.init)(jax.random.key(0), example)["params"]))


def mesh(model_devices: int) -> training.Wrapper:
    return training.mesh_step(partitioning.make_mesh(model_devices))


def without_key_bias(tree: dict) -> dict:
    """A softmax does not change with the key's bias: its gradient is rounding, which Adam makes steps of full size."""
    flat = flax.traverse_util.flatten_dict(tree)
    return {path: np.asarray(leaf) for path, leaf in flat.items() if path[-2:] != ("key", "bias")}


def test_a_mesh_trains_as_pmap_does_with_sharded_parameters_and_moments(params: dict, tmp_path: Path) -> None:
    on_mesh, by_pmap = fit(mesh(2), params), fit(training.pmap_step, params)
    for name in ("loss", "validation_loss", "gradient_norm"):
        values = [[row[name] for row in result.history] for result in (on_mesh, by_pmap)]
        np.testing.assert_allclose(*values, rtol=1e-4)
    one, other = (without_key_bias(result.variables["params"]) for result in (on_mesh, by_pmap))
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], rtol=1e-2, atol=1e-3)

    state = on_mesh.state
    kernel = state.trained["params"]["encoder"]["layer_0"]["mlp_in"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8)}  # of [8, 16], on 4 x 2 devices
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert [leaf.sharding for leaf in moments] == [kernel.sharding] * 2

    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"state": state}, {})
        for wrapper in (mesh(4), training.jit_step):
            query, optimizer = next(iter(batches(1).in_order())).query, training.AdamW(OPTIMIZER).transformation(3)
            place = training.create_state(BERT, query, optimizer, key=jax.random.key(1), wrapper=wrapper)
            restored = checkpoints.restore({"state": place})[1]["state"]
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
            assert jax.tree.map(where, restored) == jax.tree.map(where, place)


def where(leaf: jax.Array) -> tuple:
    return leaf.sharding, leaf.committed


def test_battles_on_the_devices_train_on_a_mesh_whose_run_goes_on_on_another(tmp_path: Path) -> None:
    module, train = models.MatrixFactorization(NUM_MODELS, model_dim=8), random_battles()

    def run(directory: object, hooks: tuple = (), **settings: object) -> training.FitResult:
        config = TrainingConfig(epochs=2, batch_size=16, **settings)
        return training.fit(module, train, optimizer=OPTIMIZER, training=config, directory=directory, hooks=hooks)

    def stop(row: dict) -> None:
        if row["epoch"] == 2:
            raise StopIteration

    on_one = run(None)
    with pytest.raises(StopIteration):
        run(tmp_path, (stop,), devices="mesh", model_devices=2)
    resumed = run(training.Resume(tmp_path), devices="mesh", model_devices=4)
    losses = [[row["loss"] for row in result.history] for result in (resumed, on_one)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    kernel = resumed.state.trained["params"]["prompt_projection"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 2)}  # of [6, 8], on 2 x 4 devices
    with pytest.raises(InputError, match=r"batch size \(18\) must be divisible by device count \(8\)"):
        training.fit(module, train, optimizer=OPTIMIZER, training=TrainingConfig(batch_size=18, devices="mesh"))
    with pytest.raises(InputError, match="model_devices must divide the 8 devices, got 3"):
        training.fit(module, train, optimizer=OPTIMIZER, training=TrainingConfig(devices="mesh", model_devices=3))
