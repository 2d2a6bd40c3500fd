"""Matrix factorisation against its formula in numpy, in the paper's form and the published code's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import models, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BradleyTerry


def initialised(module: models.MatrixFactorization, *, width: int = 5, batch: int = 3) -> tuple[dict, np.ndarray]:
    """Random parameters in the module's form, and embeddings; drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((batch, width), np.float32)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), {"embedding": embedding}))["params"]
    params = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, leaf.dtype), shapes)
    if module.bias:
        params["prompt_projection"]["bias"] = np.arange(module.model_dim, dtype=np.float32)
    return params, embedding


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalize_models", [True, False])
def test_formula(bias: bool, normalize_models: bool) -> None:
    module = models.MatrixFactorization(num_models=4, model_dim=6, bias=bias, normalize_models=normalize_models)
    params, embedding = initialised(module)
    v, w2 = np.asarray(params["model_embedding"], float), np.asarray(params["classifier"], float)
    w1 = np.asarray(params["prompt_projection"]["kernel"], float)
    b = np.arange(6.0) if bias else np.zeros(6)
    assert ("bias" in params["prompt_projection"]) == bias
    if normalize_models:
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
    expected = [[w2 @ (v[m] * (w1.T @ e + b)) for m in range(4)] for e in np.asarray(embedding, float)]
    scores = jax.jit(module.apply)({"params": params}, {"embedding": embedding})
    np.testing.assert_allclose(scores, expected, rtol=2e-5)


def test_noise_is_on_the_prompt_and_in_training_alone() -> None:
    module = models.MatrixFactorization(num_models=3, model_dim=4, noise_std=0.5)
    params, embedding = initialised(module, batch=20_000)
    query = {"embedding": embedding}
    apply = jax.jit(module.apply, static_argnames="deterministic")
    clean = np.asarray(apply({"params": params}, query))
    noisy = apply({"params": params}, query, deterministic=False, rngs={"noise": jax.random.key(3)})
    kernel = np.asarray(params["prompt_projection"]["kernel"], float)
    per_model = kernel @ (np.asarray(params["model_embedding"]) * np.asarray(params["classifier"])).T
    expected = 0.5 * np.linalg.norm(per_model, axis=0)
    np.testing.assert_allclose(np.std(noisy - clean, axis=0), expected, rtol=0.03)
    np.testing.assert_array_equal(clean, apply({"params": params}, query))


def test_a_pair_collapses_to_one_vector() -> None:
    module = models.MatrixFactorization(num_models=4, model_dim=6)
    params, embedding = initialised(module)
    scores = np.asarray(jax.jit(module.apply)({"params": params}, {"embedding": embedding}))
    difference = params["classifier"] * (params["model_embedding"][2] - params["model_embedding"][0])
    direction = params["prompt_projection"]["kernel"] @ difference
    offset = params["prompt_projection"]["bias"] @ difference
    np.testing.assert_allclose(scores[:, 2] - scores[:, 0], embedding @ direction + offset, rtol=1e-4, atol=1e-5)


def test_full_size_shapes() -> None:
    module = models.MatrixFactorization(num_models=64, bias=False, normalize_models=True)
    query = {"embedding": jax.ShapeDtypeStruct((2, 1536), jnp.float32)}
    scores, variables = jax.eval_shape(lambda q: module.init_with_output(jax.random.key(0), q), query)
    assert scores.shape == (2, 64)
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    assert sorted(shapes.values()) == [(64, 128), (128,), (1536, 128)]


def test_one_step_changes_every_parameter() -> None:
    from tests.training.battles import NUM_MODELS, random_battles

    battles = random_battles()
    module = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=8)
    optimizer = training.AdamW(OptimizerConfig(warmup_fraction=0.0)).transformation(10)
    initialise = jax.jit(lambda key: training.create_state(module, battles.query, optimizer, key=key))
    state = initialise(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.variables)
    weight = float(np.sum(battles.weight))
    step = training.jit_step(training.make_train_step(module, BradleyTerry(), optimizer, weight_per_step=weight))
    after, _ = step(state, battles, jax.random.key(1))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after.variables), strict=True):
        assert np.all(old != np.asarray(new))
