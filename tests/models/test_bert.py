"""The BERT encoder against a plain numpy forward, and its shapes at full size."""

import functools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from scipy.special import erf, softmax
from scipy.stats import norm

from routerjax import models
from routerjax.models.layers import SelfAttention, gelu
from routerjax.pretrained import bert_names, read_weights
from tests.encoders import LAYERS, MLP, POSITIONS, WIDTH, published_tensors

VOCAB, HEADS = 50, 4
EXAMPLE = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
ENCODER = models.BertEncoder(
    vocab_size=VOCAB, width=WIDTH, num_layers=LAYERS, num_heads=HEADS, mlp_dim=MLP, max_positions=POSITIONS
)


def reference(tensors: dict[str, np.ndarray], token_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """BERT for one row, written out from the paper with the published names."""
    w = {name: tensor.astype(float) for name, tensor in tensors.items()}

    def dense(hidden: np.ndarray, name: str) -> np.ndarray:
        return hidden @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(hidden: np.ndarray, name: str) -> np.ndarray:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    length = len(token_ids)
    hidden = w["embeddings.word_embeddings.weight"][token_ids] + w["embeddings.position_embeddings.weight"][:length]
    hidden = layer_norm(hidden + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        parts = []
        for head in range(HEADS):
            columns = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            q, k, v = (dense(hidden, f"{prefix}.attention.self.{n}")[:, columns] for n in ("query", "key", "value"))
            logits = np.where(mask > 0, q @ k.T / np.sqrt(WIDTH / HEADS), -np.inf)
            parts.append(softmax(logits, axis=-1) @ v)
        attended = dense(np.concatenate(parts, axis=-1), f"{prefix}.attention.output.dense")
        hidden = layer_norm(hidden + attended, f"{prefix}.attention.output.LayerNorm")
        wide = dense(hidden, f"{prefix}.intermediate.dense")
        wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
        hidden = layer_norm(hidden + dense(wide, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
    return hidden


def initial(module: nn.Module, *inputs: object, scale: float) -> dict:
    """Random variables, biases too, in the module's form; drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: scale * rng.standard_normal(leaf.shape, leaf.dtype), shapes)


def our_params(tensors: dict[str, np.ndarray], folder: Path) -> dict:
    path = folder / "model.safetensors"
    safetensors.numpy.save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, path)
    module = models.SentenceEmbedding(ENCODER)
    expected = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), EXAMPLE))["params"]
    return read_weights(path, bert_names("bert", head=False), expected)["encoder"]


def test_equals_numpy_and_padding_changes_nothing(tmp_path: Path) -> None:
    tensors = published_tensors(VOCAB)
    params = our_params(tensors, tmp_path)
    rng = np.random.default_rng(0)
    lengths = (1, 5, 9)
    token_ids, mask = np.zeros((3, 12), np.int32), np.zeros((3, 12), np.int32)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = rng.integers(1, VOCAB, length)
        mask[row, :length] = 1
    token_ids[:, 9:] = 7  # what stands under the mask must not matter
    query = {"token_ids": token_ids, "attention_mask": mask}

    @jax.jit
    def ours(params: dict) -> tuple[jax.Array, dict[bool, jax.Array]]:
        layers = {True: (models.Normalize(),), False: ()}
        modules = {
            normalize: models.SentenceEmbedding(ENCODER, layers=layer_list) for normalize, layer_list in layers.items()
        }
        pooled = {
            normalize: module.apply({"params": {"encoder": params}}, query) for normalize, module in modules.items()
        }
        return ENCODER.apply({"params": params}, query), pooled

    hidden, pooled = jax.device_get(ours(params))
    for row, length in enumerate(lengths):
        expected = reference(tensors, token_ids[row, :length], mask[row, :length])
        np.testing.assert_allclose(hidden[row, :length], expected, atol=2e-5)
    for normalize in (True, False):
        for row, length in enumerate(lengths):
            mean = reference(tensors, token_ids[row, :length], mask[row, :length]).mean(axis=0)
            expected = mean / np.linalg.norm(mean) if normalize else mean
            np.testing.assert_allclose(pooled[normalize][row], expected, atol=2e-5)


def test_gelu_is_exact_keeps_nan_and_has_its_derivative() -> None:
    hidden = np.concatenate([np.linspace(-12, 12, 2001), [-40.0, 40.0, -6.0]]).astype(np.float32)
    expected = hidden * norm.cdf(hidden.astype(float))
    activate = jax.jit(gelu)
    np.testing.assert_allclose(activate(hidden), expected, rtol=1e-6, atol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(gelu)))(hidden)
    np.testing.assert_allclose(slope, norm.cdf(hidden) + hidden * norm.pdf(hidden), atol=1e-6)
    assert np.isnan(activate(np.full(hidden.shape, np.nan, np.float32))).all()
    rounded = activate(hidden.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), expected, rtol=2**-7, atol=0.01)


def assert_value_and_gradient_are_finite(apply: Callable[[dict], jax.Array], variables: dict) -> None:
    @functools.partial(jax.grad, has_aux=True)
    def gradient_and_value(variables: dict) -> tuple[jax.Array, jax.Array]:
        value = apply(variables)
        return value.sum(), value

    leaves = jax.tree.leaves(jax.jit(gradient_and_value)(variables))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_attention_whose_logits_are_far_apart_is_finite() -> None:
    attention = SelfAttention(2)
    hidden = np.random.default_rng(1).standard_normal((6, 8), np.float32)
    is_token = np.ones((1, 6), bool)
    variables = initial(attention, hidden, is_token, scale=30.0)
    assert_value_and_gradient_are_finite(lambda params: attention.apply(params, hidden, is_token), variables)


def test_a_row_of_nothing_but_padding_is_finite() -> None:
    module = models.SentenceEmbedding(ENCODER)
    query = {name: np.zeros((2, 4), np.int32) for name in ("token_ids", "attention_mask")}
    variables = initial(module, query, scale=0.02)
    assert_value_and_gradient_are_finite(lambda params: module.apply(params, query), variables)


def test_dropout_is_in_training_alone() -> None:
    query = {name: np.ones((1, 4), np.int32) for name in ("token_ids", "attention_mask")}
    variables = initial(ENCODER, query, scale=0.02)

    @jax.jit
    def apply(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        noisy = ENCODER.apply(variables, query, deterministic=False, rngs={"dropout": key})
        return ENCODER.apply(variables, query), noisy

    (clean, one), (_, two) = (jax.device_get(apply(jax.random.key(seed))) for seed in (1, 2))
    assert np.abs(one - clean).max() > 1e-3
    assert np.abs(one - two).max() > 1e-3


def test_bert_base_has_its_published_size() -> None:
    base = models.BertEncoder(vocab_size=30522, width=768, num_layers=12, num_heads=12, mlp_dim=3072, max_positions=512)
    query = {name: jax.ShapeDtypeStruct((2, 512), jnp.int32) for name in ("token_ids", "attention_mask")}
    hidden, variables = jax.eval_shape(lambda q: base.init_with_output(jax.random.key(0), q), query)
    assert hidden.shape == (2, 512, 768)
    # 109,482,240 parameters with the pooler, of which it has 768 * 768 + 768.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 109_482_240 - 768 * 768 - 768
