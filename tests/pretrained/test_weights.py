"""Strict reading of published tensors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from routerjax import InputError, models
from routerjax.pretrained import bert_names, read_weights
from tests.encoders import LAYERS, MLP, POSITIONS, WIDTH, published_tensors

ENCODER = models.BertEncoder(
    vocab_size=50, width=WIDTH, num_layers=LAYERS, num_heads=4, mlp_dim=MLP, max_positions=POSITIONS
)
NAMES = bert_names("bert", head=False)


@pytest.fixture
def expected() -> dict:
    query = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    return nn.meta.unbox(jax.eval_shape(models.SentenceEmbedding(ENCODER).init, jax.random.key(0), query))["params"]


def test_every_tensor_has_its_place(tmp_path: Path, expected: dict) -> None:
    tensors = published_tensors(50)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    params = read_weights(path, NAMES, expected)
    jax.tree.map(lambda got, want: np.testing.assert_equal(got.shape, want.shape), params, expected)
    kernel = params["encoder"]["layer_1"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["encoder.layer.1.intermediate.dense.weight"].T)


def test_everything_that_is_wrong_is_listed_at_once(tmp_path: Path, expected: dict) -> None:
    tensors = published_tensors(50)
    del tensors["embeddings.LayerNorm.bias"]
    tensors["encoder.layer.7.output.dense.bias"] = np.zeros(WIDTH, np.float32)
    tensors["embeddings.position_embeddings.weight"] = np.zeros((3, WIDTH), np.float32)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        read_weights(path, NAMES, expected)
    for part in (
        "- encoder/embedding_norm/bias",
        "+ encoder.layer.7.output.dense.bias",
        "! embeddings.position_embeddings.weight: expected shape (64, 16), got (3, 16)",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"\+ pooler\.dense\.bias"):
        read_weights(path, bert_names("bert", head=True), expected)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_file_is_an_error(tmp_path: Path, expected: dict, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save(published_tensors(50))[:keep])
    with pytest.raises(InputError, match="is not a complete safetensors file"):
        read_weights(path, NAMES, expected)
