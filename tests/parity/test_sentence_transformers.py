"""Sentence encoders against the sentence-transformers library: each kind of module, in both spellings of its files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from routerjax.features import load_encoder
from tests.encoders import TEXTS, make_tokenizer

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.parity

PROMPTS = [*TEXTS, "", " ", "PROVE", "poem " * 100, "[SEP] <s> prove"]
# Modes before 5.4 -> now.
OLD_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def save_transformer(folder: Path, model_type: str) -> Path:
    """A random encoder and its tokenizer, every parameter random, so that none can go unread."""
    import torch
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    is_decoder = model_type in ("qwen3", "mistral")
    if is_decoder:
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    tokenizer = make_tokenizer(model_type)
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=66, **sizes
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    is_bert = model_type == "bert" or is_decoder
    first, last, padding = ("[CLS]", "[SEP]", "[PAD]") if is_bert else ("<s>", "</s>", "<pad>")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=first,
        sep_token=last,
        pad_token=padding,
        model_max_length=64,
        padding_side="left" if is_decoder else "right",
    )
    fast.save_pretrained(folder)
    return folder


def bare(_: int) -> list:
    return []


def normalized(_: int) -> list:
    from sentence_transformers.base.modules import Normalize

    return [Normalize()]


def everything(width: int) -> list:
    import torch
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    norm = LayerNorm(8)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    gelu = Dense(width, 12, activation_function=torch.nn.GELU())
    return [gelu, Dense(12, 8, bias=False, activation_function=torch.nn.Identity()), norm, Normalize()]


def spell_as_before(folder: Path, max_length: int) -> None:
    """Write the configuration as versions before 5.4 did."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = folder / "1_Pooling" / "config.json"
    config = json.loads(pooling.read_text())
    modes = config["pooling_mode"] if isinstance(config["pooling_mode"], list) else [config["pooling_mode"]]
    switches = {key: mode in modes for mode, key in OLD_KEYS.items()}
    pooling.write_text(json.dumps({"word_embedding_dimension": config["embedding_dimension"], **switches}))
    settings = {"max_seq_length": max_length, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    for path in folder.glob("*_Normalize/config.json"):
        path.unlink()


@pytest.mark.parametrize("as_before", [False, True])
@pytest.mark.parametrize(
    ("model_type", "pooling", "layers"),
    [
        ("bert", "cls", bare),  # as bge, gte and e5 are saved
        ("bert", tuple(OLD_KEYS), everything),
        ("mpnet", "mean", bare),
        ("xlm-roberta", ("lasttoken", "weightedmean"), bare),
        ("qwen3", "lasttoken", normalized),  # as Qwen3-Embedding
        ("mistral", "lasttoken", normalized),  # as e5-mistral
    ],
)
def test_embeddings_are_those_of_the_library(
    model_type: str, pooling: str | tuple[str, ...], layers: Callable[[int], list], as_before: bool, tmp_path: Path
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    if as_before and isinstance(pooling, tuple):
        pooling = tuple(mode for mode in OLD_KEYS if mode in pooling)  # the order in which they were concatenated
    torch.manual_seed(1)
    transformer = Transformer(str(save_transformer(tmp_path / "base", model_type)))
    pool = Pooling(16, pooling_mode=pooling)
    prompts = {"prompts": {"query": "write: "}, "default_prompt_name": "query"} if layers is everything else {}
    modules = [transformer, pool, *layers(pool.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu", **prompts).save(str(tmp_path / "saved"))
    if as_before:
        spell_as_before(tmp_path / "saved", 64)
    reference = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    expected = reference.encode(PROMPTS, show_progress_bar=False)
    np.testing.assert_allclose(load_encoder(tmp_path / "saved", max_length=64).encode(PROMPTS), expected, atol=1e-4)


def test_lower_case_is_as_in_the_library(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save_transformer(tmp_path / "tiny", "bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    described = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (path, name) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "mean"}')
    embeddings = {}
    for lower in (False, True):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": lower}))
        expected = SentenceTransformer(str(folder), device="cpu").encode(PROMPTS, show_progress_bar=False)
        embeddings[lower] = load_encoder(folder, max_length=64).encode(PROMPTS)
        np.testing.assert_allclose(embeddings[lower], expected, atol=1e-4)
    assert np.abs(embeddings[True] - embeddings[False]).max() > 0.01
