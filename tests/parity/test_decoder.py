"""Decoders against transformers: hidden states, label logits, gradients; left, right and no padding."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.models import CausalRouter, Decoder, DecoderConfig, describe_encoder, make_encoder, up_to_layer
from routerjax.pretrained import encoder_names, publish_weights, read_encoder, read_weights

pytestmark = pytest.mark.parity

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ARCHITECTURES = {
    "Llama 2": ("llama", {"num_hidden_layers": 3, "num_key_value_heads": 4}),
    "Llama 3": ("llama", {"num_hidden_layers": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "Llama 3.1": ("llama", {"num_hidden_layers": 3, "rope_parameters": LLAMA3_SCALING, "attention_bias": True}),
    "Llama 3.2": (
        "llama",
        {"num_hidden_layers": 3, "rope_parameters": {**LLAMA3_SCALING, "factor": 32.0}, "tie_word_embeddings": True},
    ),
    "Mistral": ("mistral", {"num_hidden_layers": 3, "sliding_window": 5, "head_dim": 12}),
    "Qwen 2.5": (
        "qwen2",
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "Qwen 3": ("qwen3", {"num_hidden_layers": 3, "head_dim": 16}),
    "Gemma 3": (
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    ),
}


def random_model(name: str, kind: str = "AutoModelForCausalLM"):
    """Every parameter random, so that none can go unread."""
    import torch
    import transformers

    model_type, settings = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **settings}, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def padded(side: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    length = 23
    lengths = (length,) * 3 if side == "none" else (7, 23, 15)
    token_ids, mask = np.zeros((3, length), np.int64), np.zeros((3, length), np.int64)
    for row, count in enumerate(lengths):
        place = slice(length - count, None) if side == "left" else slice(count)
        token_ids[row, place], mask[row, place] = rng.integers(3, VOCABULARY, count), 1
    return {"token_ids": token_ids, "attention_mask": mask}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """The model in torch, and the router of three label tokens at the end of its vocabulary."""
    model = random_model(request.param)
    folder: Path = tmp_path_factory.mktemp("decoder")
    model.save_pretrained(folder)
    encoder = Decoder(DecoderConfig(**read_encoder(folder)))
    router = CausalRouter(encoder, 3, head="tokens")
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(router.init(jax.random.key(0), jax.tree.map(jnp.asarray, padded("none"))))
    )
    params = read_weights(folder, encoder_names(describe_encoder(encoder)), {"encoder": shapes["params"]["encoder"]})
    labels = model.get_output_embeddings().weight[-3:].detach().numpy()
    return model, router, {**params, "label_embedding": labels}


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_hidden_states_and_label_logits(pair, side) -> None:
    import torch

    model, router, params = pair
    query = padded(side)
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(query[name]) for name in ("token_ids", "attention_mask"))
        out = model(ids, attention_mask=mask, output_hidden_states=True)
    is_token = query["attention_mask"] > 0
    hidden = jax.jit(router.encoder.apply)({"params": params["encoder"]}, query)
    scale = np.abs(out.hidden_states[-1].numpy()[is_token]).max()
    np.testing.assert_allclose(
        np.asarray(hidden)[is_token] / scale, out.hidden_states[-1].numpy()[is_token] / scale, atol=1e-5
    )
    last = np.where(is_token, np.arange(is_token.shape[1]), 0).max(axis=1)
    expected = out.logits.numpy()[np.arange(3), last, -3:]
    logits = jax.jit(router.apply)({"params": params}, query)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("remat", [False, True])
def test_gradients(pair, remat) -> None:
    import torch

    model, router, params = pair
    query = padded("left")
    last = np.where(query["attention_mask"] > 0, np.arange(query["token_ids"].shape[1]), 0).max(axis=1)
    cotangent = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    model.zero_grad()
    ids, mask = (torch.from_numpy(query[name]) for name in ("token_ids", "attention_mask"))
    logits = model(ids, attention_mask=mask).logits[torch.arange(3), torch.from_numpy(last), -3:]
    (logits * torch.from_numpy(cotangent)).sum().backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    encoder = Decoder(dataclasses.replace(router.encoder.config, remat=remat))
    tried = router.clone(encoder=encoder)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(tried.apply({"params": params}, query) * cotangent)))(params)
    labels = np.asarray(gradient["label_embedding"])
    ours = publish_weights({"encoder": gradient["encoder"]}, encoder_names(describe_encoder(router.encoder)))
    if "lm_head.weight" in expected:
        np.testing.assert_allclose(labels, expected.pop("lm_head.weight")[-3:], rtol=1e-3, atol=1e-4)
    else:
        expected["model.embed_tokens.weight"][-3:] -= labels
    assert set(ours) == set(expected)
    for name, value in expected.items():
        error = np.linalg.norm(ours[name] - value) / np.linalg.norm(value)
        assert error < 1e-3, f"{name}: {error}"


@pytest.mark.parametrize("layer", [1, 2])
def test_hidden_states_of_a_lower_layer(pair, layer, tmp_path) -> None:
    import torch

    model, router, params = pair
    query = padded("right")
    described = up_to_layer(describe_encoder(router.encoder), layer, "layer")
    model.save_pretrained(tmp_path)
    lowest = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((layer, *leaf.shape[1:]), leaf.dtype), params["encoder"]["layers"]
    )
    expected = {"token_embedding": params["encoder"]["token_embedding"], "layers": lowest}
    read = read_weights(tmp_path, encoder_names(described, tmp_path), {"encoder": expected})
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(query[name]) for name in ("token_ids", "attention_mask"))
        hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[layer].numpy()
    is_token = query["attention_mask"] > 0
    ours = np.asarray(jax.jit(make_encoder(described, "encoder").apply)({"params": read["encoder"]}, query))
    np.testing.assert_allclose(
        ours[is_token] / np.abs(hidden).max(), hidden[is_token] / np.abs(hidden).max(), atol=1e-5
    )
