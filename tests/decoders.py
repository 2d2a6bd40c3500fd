"""A tiny random decoder in the format in which transformers saves one, made without torch."""

import json
import zlib
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy

from routerjax.models import Decoder, DecoderConfig
from routerjax.pretrained import encoder_names, publish_weights, read_encoder
from tests.encoders import change_json, make_tokenizer

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SETTINGS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
}

HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHAT_TEMPLATE = "{% for turn in messages %}[SEP] {{ turn['role'] }} {{ turn['content'] | trim }} [SEP]{% endfor %}"
MODELS = ["a", "b", "c"]
"""Models of :func:`save_p2l`."""


def save_tiny_decoder(folder: Path, *, model_type: str = "llama", shards: int = 1, **settings: object) -> Path:
    """Save it with a tokenizer, and with an ``lm_head`` where embeddings are not tied."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    config = {"model_type": model_type, "vocab_size": tokenizer.get_vocab_size(), **SIZES, **SETTINGS[model_type]}
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    described = read_encoder(folder)
    example = {name: np.zeros((1, 2), np.int32) for name in ("token_ids", "attention_mask")}
    shapes = jax.eval_shape(Decoder(DecoderConfig(**described)).init, jax.random.key(0), example)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), nn.meta.unbox(shapes)["params"])
    tensors = {
        name: _random(name, tensor.shape)
        for name, tensor in publish_weights({"encoder": zeros}, encoder_names(described)).items()
    }
    if not settings.get("tie_word_embeddings", model_type == "gemma3_text"):
        tensors["lm_head.weight"] = _random("lm_head.weight", tensors["model.embed_tokens.weight"].shape)
    names = sorted(tensors)
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{place % shards}.safetensors" for place, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save_causal_classifier(folder: Path, **settings: object) -> Path:
    """RouteLLM's layout: the last five tokens are ratings."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([*HEADERS, *(f"[[{rating}]]" for rating in range(1, 6))])
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "architectures": ["LlamaForCausalLM"]}
    save_tiny_decoder(folder, **sizes, **settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    change_json(folder / "tokenizer_config.json", bos_token="[CLS]", pad_token="[PAD]")
    return folder


def save_p2l(folder: Path, loss: str | None) -> Path:
    """P2L's layout, with or without the file that says its loss."""
    save_tiny_decoder(folder)
    tensors, rng = safetensors.numpy.load_file(folder / "model.safetensors"), np.random.default_rng(1)
    del tensors["lm_head.weight"]
    width = tensors["model.norm.weight"].size
    for layer, rows in [("head", 3), ("eta_head", 1)][: 1 if loss == "bt" else 2]:
        tensors[f"head.{layer}.weight"] = rng.standard_normal((rows, width)).astype(np.float32)
        tensors[f"head.{layer}.bias"] = rng.standard_normal(rows).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "model_list.json").write_text(json.dumps(MODELS))
    change_json(folder / "tokenizer_config.json", cls_token="[CLS]", pad_token="[PAD]", chat_template=CHAT_TEMPLATE)
    if loss is not None:
        change_json(folder / "training_config.json", loss_type=loss, max_length=32)
    return folder


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw values that depend on the tensor's name alone."""
    return (0.3 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)).astype(np.float32)
