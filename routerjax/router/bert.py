"""BERT classifiers from Hugging Face folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tokenizers

from routerjax.errors import InputError
from routerjax.models import BertEncoder, BertRouter
from routerjax.pretrained import TOKENIZER_FILES, bert_names, locate, read_bert_config, read_weights
from routerjax.typing import Array, Variables


@dataclass(frozen=True, eq=False)
class BertClassifier:
    """A BERT router as a folder holds it.

    Attributes:
        module: ``{"token_ids", "attention_mask"} -> scores``.
        variables: of the module.
        labels: names of the outputs.
        tokenizer_files: name -> content, byte for byte.
    """

    module: BertRouter
    variables: Variables
    labels: tuple[str, ...]
    tokenizer_files: Mapping[str, bytes]


def load_bert(
    source: str | os.PathLike[str],
    *,
    labels: tuple[str, ...] | None = None,
    head: Literal["architecture", "linear", "mean"] = "architecture",
    key: Array | None = None,
) -> BertClassifier:
    """Load a BERT, RoBERTa, XLM-RoBERTa or DistilBERT, fine-tuned as a classifier or only pre-trained.

    Args:
        source: a folder with ``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``,
            or a Hugging Face name; see :func:`routerjax.pretrained.locate`.
        labels: names of the outputs; default those of ``config.json``.
        head: see :class:`routerjax.models.BertRouter`.
        key: initialises the layers of the head that the folder does not hold; each is logged by name.

    Raises:
        InputError: not found, damaged, of another architecture, or without a head where no key is given.
    """
    folder = locate(source)
    config = read_bert_config(folder)
    labels = config.labels if labels is None else labels
    tokenizer_files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if "tokenizer.json" not in tokenizer_files:
        raise InputError(f"{folder} holds no tokenizer.json; save its tokenizer as a fast one")
    try:
        tokens = tokenizers.Tokenizer.from_str(tokenizer_files["tokenizer.json"].decode("utf-8")).get_vocab_size()
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise InputError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}") from error
    if tokens > config.encoder["vocab_size"]:
        raise InputError(
            f"{folder}: the tokenizer has {tokens} tokens, the encoder only {config.encoder['vocab_size']}"
        )
    module = BertRouter(
        BertEncoder(**config.encoder),
        num_models=len(labels),
        head=head,
        dropout_rate=config.classifier_dropout_rate,
    )
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}

    def init(key: Array) -> dict[str, Array]:
        return nn.meta.unbox(module.init(key, example))["params"]

    def init_head(key: Array) -> dict[str, Array]:
        return {name: leaf for name, leaf in init(key).items() if name != "encoder"}

    model_type = module.encoder.model_type
    params = read_weights(
        folder,
        bert_names(model_type, head=head == "architecture"),
        jax.eval_shape(init, jax.random.key(0)),
        # Under jit, the encoder that nobody asks for is not made.
        initial=None if key is None else jax.jit(init_head)(key),
    )
    return BertClassifier(module, {"params": jax.tree.map(jnp.asarray, params)}, labels, tokenizer_files)
