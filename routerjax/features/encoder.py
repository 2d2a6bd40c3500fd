"""Sentence encoders: text to embeddings with a pretrained BERT, in a few static shapes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from routerjax.errors import InputError
from routerjax.features.cache import EmbeddingCache, encode_once
from routerjax.features.spec import FeatureSpec
from routerjax.features.tokens import TextTokenizer
from routerjax.models import BertEncoder, SentenceEmbedding
from routerjax.pretrained import bert_names, locate, read_bert_config, read_weights, weights_sha256
from routerjax.typing import Array, Query, Variables

# So much work at most is lost when an encoding run is killed.
PROMPTS_PER_COMMIT = 256
MEAN = ["pooling_mode_mean_tokens"]


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A frozen sentence encoder; see :func:`load_encoder`.

    Attributes:
        spec: width, length and fingerprint of what it makes.
        module: linen, ``{"token_ids", "attention_mask"} -> embedding [batch, embed]``.
        variables: of the module.
        tokenizer_json: the tokenizer's file, byte for byte.
    """

    spec: FeatureSpec
    module: SentenceEmbedding
    variables: Variables
    tokenizer_json: bytes

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """The real tokenizer, which reads ``spec.max_length`` tokens."""
        return TextTokenizer(self.tokenizer_json, cast(int, self.spec.max_length))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Int32[np.ndarray, "prompts length"]]:
        """``token_ids`` and ``attention_mask``, padded to the longest prompt."""
        return self.tokenizer.pad(self.tokenizer.token_ids(prompts))

    def encode(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "prompts embed"]:
        """Embed prompts; equal prompts are encoded once.

        Args:
            prompts: texts, of which ``spec.max_length`` tokens are read.
            cache: looked up first and added to, a few hundred prompts at a time.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: a prompt that is not text.
        """
        embeddings = encode_once(
            prompts, self._encode_sorted, fingerprint=self.spec.fingerprint, cache=cache, progress=progress
        )
        return np.stack(embeddings) if embeddings else np.zeros((0, self.spec.width), np.float32)

    def _encode_sorted(self, prompts: dict[bytes, str]):
        """Yield embeddings by digest, a few hundred at a time."""
        digests = list(prompts)
        part: dict[bytes, Float32[np.ndarray, "embed"]] = {}
        for rows, query in self.tokenizer.batches(self.tokenizer.token_ids(list(prompts.values()))):
            embedding = np.asarray(_embed(self.module, self.variables, query))
            part.update({digests[row]: embedding[place] for place, row in enumerate(rows)})
            if len(part) >= PROMPTS_PER_COMMIT:
                yield part
                part = {}
        if part:
            yield part


@functools.partial(jax.jit, static_argnums=0)
def _embed(module: nn.Module, variables: Variables, query: Query) -> Array:
    return cast(Array, module.apply(variables, query))


def load_encoder(source: str | os.PathLike[str], *, max_length: int = 256) -> SentenceEncoder:
    """Load a sentence encoder: one of the BERT family with mean pooling, as sentence-transformers saves it.

    Args:
        source: a folder with ``config.json``, ``model.safetensors`` (or shards and their index) and
            ``tokenizer.json``, or a Hugging Face name; see :func:`routerjax.pretrained.locate`. Embeddings are scaled
            to unit length where ``modules.json`` says so.
        max_length: tokens of a prompt that are read, whatever the files say; part of the fingerprint.

    Raises:
        InputError: not found, damaged, or of another architecture or pooling.
    """
    folder = locate(source)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not a sentence encoder: no {name} in it")
    encoder = BertEncoder(**read_bert_config(folder).encoder)
    if not 2 <= max_length <= encoder.max_length:
        raise InputError(f"max_length must be in [2, {encoder.max_length}] for {source}, got {max_length}")
    module = SentenceEmbedding(encoder, normalize=mean_is_normalized(folder))
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    expected = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), example))["params"]
    params = read_weights(folder, bert_names(encoder.model_type, head=False), expected)
    tokenizer_json = (folder / "tokenizer.json").read_bytes()
    described = {
        "weights": weights_sha256(folder),
        "tokenizer": hashlib.sha256(tokenizer_json).hexdigest(),
        "max_length": max_length,
        "pooling": "mean",
        "normalize": module.normalize,
    }
    spec = FeatureSpec(
        kind="encoder",
        source=os.fspath(source),
        width=encoder.width,
        fingerprint=hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        max_length=max_length,
    )
    loaded = SentenceEncoder(
        spec=spec,
        module=module,
        variables={"params": jax.tree.map(jnp.asarray, params)},
        tokenizer_json=tokenizer_json,
    )
    try:
        vocab_size = loaded.tokenizer.tokenizer.get_vocab_size()
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    if vocab_size > encoder.vocab_size:
        raise InputError(f"{folder}: the tokenizer has {vocab_size} tokens, the encoder only {encoder.vocab_size}")
    return loaded


def pools_by_mean(folder: Path) -> bool:
    """Whether an encoder may be read as a sentence encoder: its files say mean pooling, or nothing of pooling."""
    return all(modes == MEAN for modes in _pooling_modes(folder).values())


def _pooling_modes(folder: Path) -> dict[Path, list[str]]:
    return {
        path: [name for name, used in _json(path).items() if name.startswith("pooling_mode") and used is True]
        for path in folder.glob("*_Pooling/config.json")
    }


def mean_is_normalized(folder: Path) -> bool:
    """Whether a sentence encoder scales the mean of its hidden states to unit length.

    Raises:
        InputError: it pools in another way than by the mean.
    """
    for path, modes in _pooling_modes(folder).items():
        if modes != MEAN:
            raise InputError(f"{path}: only mean pooling is supported, got {modes}")
    if not (folder / "modules.json").is_file():
        return False
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'modules.json'} is not JSON: {error}") from error
    return any(module["type"].endswith(".Normalize") for module in modules)


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content
