"""An NVIDIA GPU computes what the CPU does: scores, gradients, steps, bundles, and attention by cuDNN's kernel.

Run by ``make gpu-check``; where there is no GPU, every test is skipped.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import InputError, data, features, formats, losses, models, training
from routerjax.config import TrainingConfig
from routerjax.families import CAUSAL, find_family, pretrained_variables
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.typing import PyTree, Query
from tests.data.test_loader import token_battles
from tests.decoders import SETTINGS, save_tiny_decoder
from tests.encoders import TEXTS
from tests.routers import tiny_router, tiny_text_router

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="no NVIDIA GPU that this jax can use"),
]


@pytest.fixture(autouse=True)
def _float32_matmuls():
    """Products of float32 numbers in float32, rather than in the TF32 that GPUs take."""
    with jax.default_matmul_precision("highest"):
        yield


def on_both(function: object, *arguments: PyTree) -> tuple[PyTree, PyTree]:
    """Results of the GPU and of the CPU."""
    results = []
    for device in (jax.devices("gpu")[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.device_get(jax.jit(function)(*jax.device_put(arguments, device))))
    return results[0], results[1]


def assert_close(first: PyTree, second: PyTree, tolerance: float) -> None:
    """Compare leaves relative to their largest number."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True):
        scale = max(np.abs(other).max(initial=0.0), 1e-3)
        np.testing.assert_allclose(one, other, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


def tiny_query(rows: int = 5, length: int = 24, *, left: bool = False) -> Query:
    """Rows of different lengths, padded on one side."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 20, (rows, length)).astype(np.int32)
    counts = np.linspace(2, length, rows).astype(int)
    place = np.arange(length)[None]
    is_token = place >= length - counts[:, None] if left else place < counts[:, None]
    return {"token_ids": np.where(is_token, ids, 0).astype(np.int32), "attention_mask": is_token.astype(np.int32)}


def causal(folder: Path, model_type: str, **chosen: object) -> tuple[models.CausalRouter, PyTree]:
    if not folder.exists():
        save_tiny_decoder(folder, model_type=model_type)
    featurizer = features.load_tokens(folder, chosen=chosen)
    module = CAUSAL.make_module(num_outputs=3, attributes={}, featurizer=featurizer)
    return module, jax.tree.map(np.asarray, pretrained_variables(module, folder, jax.random.key(0)))


def loss_of(module: models.CausalRouter, variables: PyTree, query: Query) -> jax.Array:
    scores = module.apply(variables, query)
    return losses.bradley_terry(scores[:, 0] - scores[:, 1], jnp.ones(len(scores))).sum()


@pytest.mark.parametrize("model_type", SETTINGS)
def test_scores_and_gradients_of_decoders(tmp_path: Path, model_type: str) -> None:
    module, variables = causal(tmp_path / "decoder", model_type)
    for left in (False, True):
        query = tiny_query(left=left)
        assert_close(*on_both(module.apply, variables, query), 1e-5)
    assert_close(*on_both(jax.grad(functools.partial(loss_of, module)), variables, query), 1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("length", [4, 24])
def test_attention_by_cudnn(tmp_path: Path, model_type: str, left: bool, length: int) -> None:
    query = tiny_query(length=length, left=left)

    def computed(**chosen: object) -> tuple[PyTree, PyTree]:
        module, variables = causal(tmp_path / "decoder", model_type, **chosen)
        gradient = jax.jit(jax.grad(functools.partial(loss_of, module)))(variables, query)
        if chosen.get("attention") == "cudnn":
            assert "__cudnn$fmha" in jax.jit(module.apply).lower(variables, query).compile().as_text()
        return jax.jit(module.apply)(variables, query), gradient

    exact = computed()
    plain, fast = (computed(dtype="bfloat16", attention=attention) for attention in ("plain", "cudnn"))
    # The kernel may be as far from float32 as plain operations in bfloat16 are, and not much farther.
    for of_exact, of_plain, of_fast in zip(exact, plain, fast, strict=True):
        distance = [float(optax.tree.norm(optax.tree.sub(each, of_exact))) for each in (of_plain, of_fast)]
        assert distance[1] < 2 * distance[0] + 1e-3 * float(optax.tree.norm(of_exact))


def test_a_router_trained_by_cudnn_is_scored_by_plain_operations(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "decoder")
    chosen = {"dtype": "bfloat16", "attention": "cudnn"}
    featurizer = features.load_tokens(tmp_path / "decoder", chosen=chosen)
    assert featurizer.encoder.config.attention == "cudnn"
    assert featurizer.for_scoring().encoder.config.attention == "plain"


@pytest.mark.parametrize("family", ["mf", "bert", "causal"])
def test_scores_of_routers(tmp_path: Path, family: str) -> None:
    router = tiny_router(tmp_path) if family == "mf" else tiny_text_router(tmp_path, family=family)
    query = router.featurizer.query(TEXTS)
    assert_close(*on_both(router.module.apply, dict(router.variables), query), 1e-5)


def test_one_step(tmp_path: Path) -> None:
    battles, token_ids = token_battles()
    token_ids = [[5 + token % 15 for token in ids] for ids in token_ids]
    batch = next(data.TokenBatches(battles, token_ids, lengths=(16,), batch_tokens=256).in_order())
    module, variables = causal(tmp_path / "decoder", "llama", lora_rank=2)
    optimizer = optax.adam(1e-3)
    step = training.make_train_step(module, BRADLEY_TERRY, optimizer, weight_per_step=10.0)
    state = training.create_state(module, batch.query, optimizer, key=jax.random.key(0), variables=variables)
    (first, first_metrics), (second, second_metrics) = on_both(step, state, batch, jax.random.key(1))
    assert_close(first_metrics, second_metrics, 1e-5)
    assert_close(first.trained, second.trained, 1e-4)


def test_fit_on_a_gpu_learns(tmp_path: Path) -> None:
    arena = data.simulate_arena(num_prompts=300, num_test_prompts=50, seed=0)
    rng = np.random.default_rng(0)
    prompts = arena.preferences.unique_prompts
    embedded = data.EmbeddedPrompts(prompts, rng.standard_normal((len(prompts), 16)).astype(np.float32))
    module = find_family("mf").make_module(
        num_outputs=len(arena.preferences.models),
        attributes={"model_dim": 8},
        featurizer=features.GivenFeaturizer(source="e.npy", width=16, fingerprint="f"),
    )
    result = training.fit(
        module,
        embedded.batch(arena.preferences),
        optimizer=optax.adam(1e-2),
        training=TrainingConfig(epochs=3, batch_size=64),
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize("family", ["mf", "bert", "causal"])
def test_a_bundle_written_here_gives_the_routers_win_probabilities(tmp_path: Path, family: str) -> None:
    router = tiny_router(tmp_path) if family == "mf" else tiny_text_router(tmp_path, family=family)
    formats.export(router, tmp_path / "bundle", "stablehlo")  # which compares them in a process of its own
    assert (tmp_path / "bundle" / "routerjax_runtime.py").exists()


def test_what_cudnn_does_not_compute_is_refused(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "decoder")
    with pytest.raises(InputError, match="attention=cudnn computes in bfloat16, got float32"):
        features.load_tokens(tmp_path / "decoder", chosen={"attention": "cudnn"})
    dropped = {"attention": "cudnn", "dtype": "bfloat16", "attention_dropout_rate": 0.1}
    with pytest.raises(InputError, match=r"attention=cudnn has no dropout, got 0\.1"):
        features.load_tokens(tmp_path / "decoder", chosen=dropped)
