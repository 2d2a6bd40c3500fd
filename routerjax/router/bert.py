"""BERT classifiers from Hugging Face folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    three_labels: bool = False,
    head: Literal["architecture", "linear", "mean"] = "architecture",
    key: Array | None = None,
) -> BertClassifier:
    """Load a BERT, RoBERTa, XLM-RoBERTa or DistilBERT, fine-tuned as a classifier or only pre-trained.

    Args:
        source: a folder with ``config.json``, ``model.safetensors`` (or shards and their index) and ``tokenizer.json``,
            or a Hugging Face name; see :func:`routerjax.pretrained.locate`.
        labels: names of the outputs; default those of ``config.json``.
        three_labels: the outputs are (strong wins, tie, weak wins), not a score for each model.
        head: see :class:`routerjax.models.BertRouter`.
        key: initialises the layers of the head that the folder does not hold; each is logged by name.

    Raises:
        InputError: not found, damaged, of another architecture, or without a head where no key is given.
    """
    folder = locate(source)
    config = read_bert_config(folder)
    labels = config.labels if labels is None else labels
    if three_labels and len(labels) != 3:
        raise InputError(f"three labels need three names (strong wins, tie, weak wins), got {labels}")
    tokenizer_files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if "tokenizer.json" not in tokenizer_files:
        raise InputError(f"{folder} holds no tokenizer.json; save its tokenizer as a fast one")
    module = BertRouter(
        BertEncoder(**config.encoder),
        num_models=2 if three_labels else len(labels),
        head=head,
        three_labels=three_labels,
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
