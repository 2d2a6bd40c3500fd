"""A decoder trains on a mesh as on one device, fully sharded: nothing of its size is ever whole on a device."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import models, partitioning, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.typing import PreferenceBatch, PyTree

BATCH, LENGTH, NUM_MODELS = 16, 6, 3
MESHES = {"8x1": 1, "4x2": 2, "2x4": 4}


def router(*, lora_rank: int = 0) -> models.CausalRouter:
    config = models.DecoderConfig(
        model_type="qwen3", vocab_size=48, width=16, num_layers=3, num_heads=8, num_key_heads=4, head_dim=4, mlp_dim=40,
        max_positions=16, qk_norm=True, attention_scale=0.5, windows=(0, 3, 0), initializer_range=0.3, added_tokens=8,
        lora_rank=lora_rank, remat=True,
    )  # fmt: skip
    return models.CausalRouter(models.Decoder(config), NUM_MODELS)


def battles() -> PreferenceBatch:
    rng = np.random.default_rng(0)
    num_tokens = rng.integers(1, LENGTH + 1, (BATCH, 1))
    model_a = rng.integers(NUM_MODELS, size=BATCH).astype(np.int32)
    return PreferenceBatch(
        query={
            "token_ids": rng.integers(56, size=(BATCH, LENGTH)).astype(np.int32),
            "attention_mask": (np.arange(LENGTH) < num_tokens).astype(np.int32),
        },
        query_index=np.arange(BATCH, dtype=np.int32),
        model_a=model_a,
        model_b=(model_a + 1) % NUM_MODELS,
        outcome=np.eye(3, dtype=np.float32)[rng.integers(3, size=BATCH)],
        weight=rng.uniform(0.5, 2.0, BATCH).astype(np.float32),
    )


@functools.cache
def variables(lora_rank: int) -> PyTree:
    """Random, the second factors of the adapters too, which would start at 0."""
    shapes = jax.eval_shape(router(lora_rank=lora_rank).init, jax.random.key(0), battles().query)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(leaf.dtype), nn.meta.unbox(shapes))


@functools.cache
def trained(wrapper: training.Wrapper, lora_rank: int) -> tuple[PyTree, PyTree]:
    """Gradients of the first step, and what is trained after three."""
    module, batch = router(lora_rank=lora_rank), battles()
    config = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.0, final_fraction=1.0, weight_decay=0.0)
    optimizer = training.make_optimizer(config, 3)
    state = training.create_state(
        module, batch.query, optimizer, key=jax.random.key(0), variables=variables(lora_rank), wrapper=wrapper
    )
    step = wrapper(training.make_train_step(module, BRADLEY_TERRY, optimizer, weight_per_step=1.0))
    batch, key = wrapper.split(batch), wrapper.put(jax.random.key(1))
    state, _ = step(state, batch, key)
    # Adam's first moment after one step is a tenth of the gradient.
    (moment,) = jax.device_get(optax.tree.get_all_with_path(state.opt_state, "mu"))
    for _ in range(2):
        state, _ = step(state, batch, key)
    return jax.tree.map(lambda leaf: 10 * leaf, moment[1]), jax.device_get(state.trained)


@pytest.mark.parametrize("lora_rank", [0, 8])
@pytest.mark.parametrize("devices", [*MESHES, "pmap"])
def test_a_decoder_trains_on_many_devices_as_on_one(devices: str, lora_rank: int) -> None:
    if devices == "pmap":
        wrapper = training.pmap_step
    else:
        wrapper = training.mesh_step(partitioning.make_mesh(MESHES[devices]))
    for got, expected, tolerance in zip(
        trained(wrapper, lora_rank), trained(training.jit_step, lora_rank), (1e-5, 1e-3), strict=True
    ):
        expected = flax.traverse_util.flatten_dict(expected)
        for path, leaf in flax.traverse_util.flatten_dict(got).items():
            assert np.abs(expected[path]).max() > 0.01, path
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=tolerance, err_msg=str(path))
