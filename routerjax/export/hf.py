"""Hugging Face's own format: a classifier that transformers loads."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from jaxtyping import Float32

from routerjax.atomic import new_directory, refuse_existing
from routerjax.errors import InputError
from routerjax.export.bundle import golden_prompts
from routerjax.export.verification import reject
from routerjax.models import BertEncoder, BertRouter, unstack_layers
from routerjax.pretrained import BertConfig, bert_names, publish_weights
from routerjax.router.bert import BertClassifier, load_bert
from routerjax.typing import Query, Variables

TOLERANCE = 1e-5
"""Largest difference of score that is accepted: times the largest score where that is above 1."""
# So many golden prompts, cut to so many tokens, and the longest one as the encoder reads it.
NUM_PROMPTS, NUM_TOKENS = 7, 64


def export_hf(classifier: BertClassifier, path: str | os.PathLike[str]) -> float:
    """Write a folder that ``AutoModelForSequenceClassification`` and ``AutoTokenizer`` of transformers load.

    Its logits are the router's scores, under the names of ``labels``. The folder is loaded again by
    :func:`routerjax.router.load_bert` and compared before it gets its name.

    Args:
        classifier: what to export; its head must be the architecture's own. What was loaded and not trained gives back
            the tensors bit for bit.
        path: a new folder.

    Returns:
        The largest difference of score found.

    Raises:
        InputError: the folder exists, or the router's head is none of transformers'.
        VerificationError: the folder gives other scores; it is kept beside ``path``, named in the message.
    """
    path = Path(path)
    refuse_existing(path)
    module, encoder = classifier.module, classifier.module.encoder
    if module.head != "architecture":
        raise InputError(
            f"transformers has no classifier with the head {module.head!r}; train with the router attribute "
            "head='architecture'"
        )
    params = classifier.variables["params"]
    if encoder.scan_layers:
        params = {**params, "encoder": unstack_layers(params["encoder"])}
    plain = module.clone(encoder=encoder.clone(dtype=jnp.dtype("float32"), scan_layers=False, parent=None))
    config = BertConfig(
        encoder={field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)},
        classifier_dropout_rate=module.dropout_rate,
        labels=classifier.labels,
    )
    tensors = publish_weights(params, bert_names(encoder.model_type, head=True))
    tokenizer = tokenizers.Tokenizer.from_str(classifier.tokenizer_files["tokenizer.json"].decode("utf-8"))
    files = {
        "tokenizer_config.json": _json_bytes(_tokenizer_config(tokenizer, encoder)),
        **classifier.tokenizer_files,
        "config.json": _json_bytes(config.to_json()),
        # torch's loaders ask for the metadata that torch's savers write.
        "model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"}),
    }
    queries = _golden_queries(tokenizer, encoder)
    own = _scores(plain, {"params": params}, queries)
    with new_directory(path) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        written = load_bert(folder)
        difference = float(np.abs(_scores(written.module, written.variables, queries) - own).max())
        if written.labels != classifier.labels or not difference <= TOLERANCE * max(1.0, float(np.abs(own).max())):
            reject(folder, path, f"scores differ by {difference:.1e}")
    return difference


def _tokenizer_config(tokenizer: tokenizers.Tokenizer, encoder: BertEncoder) -> dict[str, object]:
    """Where only tokenizer.json is known: all that transformers needs besides it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.id_to_token(encoder.padding_id),
        "model_max_length": encoder.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _golden_queries(tokenizer: tokenizers.Tokenizer, encoder: BertEncoder) -> list[Query]:
    """Short prompts as one padded batch, and one that is as long as the encoder reads."""
    *short, long = golden_prompts()
    queries = []
    for prompts, length in ((short[:NUM_PROMPTS], NUM_TOKENS), ([long], encoder.max_length)):
        tokenizer.enable_truncation(min(length, encoder.max_length))
        tokenizer.enable_padding(pad_id=encoder.padding_id)
        encodings = tokenizer.encode_batch(prompts)
        token_ids, mask = ([getattr(one, name) for one in encodings] for name in ("ids", "attention_mask"))
        queries.append({"token_ids": jnp.asarray(token_ids), "attention_mask": jnp.asarray(mask)})
    return queries


def _scores(module: BertRouter, variables: Variables, queries: list[Query]) -> Float32[np.ndarray, "prompts outputs"]:
    with jax.default_matmul_precision("highest"):
        return np.concatenate([np.asarray(module.apply(variables, query)) for query in queries])


def _json_bytes(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
