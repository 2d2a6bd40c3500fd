"""Attention by cuDNN's kernel is given what plain operations are given; its own numbers are compared on a GPU."""

from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, features, models
from routerjax.models import attention
from tests.decoders import save_tiny_decoder

CONFIG = models.DecoderConfig(
    model_type="llama", vocab_size=50, width=16, num_layers=3, num_heads=4, num_key_heads=2, head_dim=8, mlp_dim=32,
    max_positions=64, attention_scale=0.3, windows=(0, 4, 4), initializer_range=0.3,
)  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [3, 12])
def test_windows_and_padding(monkeypatch: pytest.MonkeyPatch, side: str, length: int) -> None:
    kernel = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *given, **named: kernel(*given, **{**named, "implementation": "xla"})
    )
    rng, counts = np.random.default_rng(0), np.asarray([length, 2, 1])
    place = np.arange(length)[None]
    is_token = place < counts[:, None] if side == "right" else place >= length - counts[:, None]
    query = {
        "token_ids": rng.integers(50, size=is_token.shape).astype(np.int32),
        "attention_mask": is_token.astype(np.int32),
    }
    plain = models.Decoder(CONFIG)
    variables = jax.jit(plain.init)(jax.random.key(0), query)
    fast = models.Decoder(models.DecoderConfig(**{**vars(CONFIG), "attention": "cudnn"}))
    hidden, expected = (np.asarray(jax.jit(module.apply)(variables, query)) for module in (fast, plain))
    np.testing.assert_allclose(hidden[is_token], expected[is_token], atol=1e-5)


def test_cudnn_without_a_gpu_is_refused(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "decoder")
    with pytest.raises(InputError, match="attention=cudnn needs an NVIDIA GPU, got cpu: take plain"):
        features.load_tokens(tmp_path / "decoder", chosen={"attention": "cudnn", "dtype": "bfloat16"})


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("length", [7, 301])
def test_plain_attention_is_jax_own(length: int, window: int) -> None:
    """Rows of over 256 tokens are computed in blocks, here of unequal sizes."""
    rng, counts = np.random.default_rng(0), np.asarray([length, length // 2])
    query, key, value = (rng.standard_normal((2, length, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    is_token = np.arange(length)[None] < counts[:, None]
    mixed = attention.plain_attention(
        query, key, value, is_token, np.int32(window), scale=0.3, drop=lambda weights: weights
    )
    expected = jax.nn.dot_product_attention(
        query, key, value, scale=0.3, is_causal=True, key_value_seq_lengths=counts.astype(np.int32),
        local_window_size=(window - 1, 0) if window else None,
    )  # fmt: skip
    np.testing.assert_allclose(np.asarray(mixed)[is_token], np.asarray(expected)[is_token], atol=1e-5)
    assert attention.blocks_of(301) == [(0, 75), (75, 150), (150, 225), (225, 301)]
