"""A tiny random BERT in the format in which sentence-transformers saves one, made without torch."""

import json
import string
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

# What decides the embeddings of save_tiny_encoder's folder.
ENCODER_FILES = ("model.safetensors", "config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json")
WIDTH, LAYERS, MLP, POSITIONS = 16, 2, 32, 64
TEXTS = ("what is the capital of this country", "prove that there are infinitely many primes", "write a poem, please!")


def make_tokenizer(model_type: str = "bert") -> tokenizers.Tokenizer:
    roberta = model_type in ("roberta", "xlm-roberta", "camembert", "mpnet")
    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    unknown, first, last = ("<unk>", "<s>", "</s>") if roberta else ("[UNK]", "[CLS]", "[SEP]")
    words = sorted({word for text in TEXTS for word in text.replace(",", " , ").replace("!", " ! ").split()})
    # Of fixed order, unlike a trained vocabulary: the embeddings of a text are the same in every run.
    letters = [f"{prefix}{letter}" for prefix in ("", "##") for letter in string.ascii_lowercase + string.digits]
    vocabulary = dict.fromkeys([*special, *words, *letters])
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({token: row for row, token in enumerate(vocabulary)}, unk_token=unknown)
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, special.index(token)) for token in (first, last)],
    )
    tokenizer.enable_padding(length=128)  # as published files have it: settings that must be overridden
    tokenizer.enable_truncation(8)
    return tokenizer


def published_tensors(vocab_size: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Names and shapes of Hugging Face's BertModel."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (vocab_size, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
        "pooler.dense.weight": (WIDTH, WIDTH),
        "pooler.dense.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for name, shape in (
            ("attention.self.query", (WIDTH, WIDTH)),
            ("attention.self.key", (WIDTH, WIDTH)),
            ("attention.self.value", (WIDTH, WIDTH)),
            ("attention.output.dense", (WIDTH, WIDTH)),
            ("intermediate.dense", (MLP, WIDTH)),
            ("output.dense", (WIDTH, MLP)),
        ):
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{name}.weight": (WIDTH,), f"{prefix}{name}.bias": (WIDTH,)}
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def save_tiny_encoder(folder: Path, *, normalize: bool = True, seed: int = 0) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = published_tensors(tokenizer.get_vocab_size(), seed=seed)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": MLP,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    (folder / "config.json").write_text(json.dumps(config))
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    save_modules(
        folder, {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if normalize else {})}
    )
    return folder


def save_modules(folder: Path, types: dict[str, str], *, package: str = "sentence_transformers.models") -> None:
    """Write modules.json: path -> class of each module, in order."""
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"{package}.{name}"}
        for place, (path, name) in enumerate(types.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def save_tiny_classifier(folder: Path, labels: tuple[str | None, ...], *, names: bool = True) -> Path:
    """Save a tiny encoder with a head for labels, as transformers saves BertForSequenceClassification."""
    save_tiny_encoder(folder)
    if names:
        change_json(folder / "config.json", id2label={str(index): label for index, label in enumerate(labels)})
    tensors, rng = safetensors.numpy.load_file(folder / "model.safetensors"), np.random.default_rng(1)
    tensors |= {
        "classifier.weight": rng.standard_normal((len(labels), WIDTH)).astype(np.float32),
        "classifier.bias": rng.standard_normal(len(labels)).astype(np.float32),
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def change_json(path: Path, **changes: object) -> None:
    """Change values in a file that holds a JSON object; create the file if there is none."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
