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
import tokenizers
from jaxtyping import Float32, Int32

from routerjax.errors import InputError
from routerjax.features.cache import EmbeddingCache, encode_once
from routerjax.features.spec import FeatureSpec
from routerjax.models import BertEncoder, SentenceEmbedding
from routerjax.pretrained import bert_names, file_sha256, locate, read_bert_config, read_weights
from routerjax.prompts import valid_text
from routerjax.typing import Array, Query, Variables

# Prompts are padded to one of these lengths: each is one compilation, and none comes later.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Tokens a batch: small ones stay in a CPU's cache, large ones fill an accelerator.
TOKENS_ON_CPU, TOKENS_ON_ACCELERATOR = 2048, 32768
# So much work at most is lost when an encoding run is killed.
PROMPTS_PER_COMMIT = 256


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
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The real tokenizer, truncating to ``spec.max_length``; the file's own settings are overridden."""
        tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer_json.decode("utf-8"))
        tokenizer.enable_truncation(cast(int, self.spec.max_length))
        tokenizer.no_padding()
        return tokenizer

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Int32[np.ndarray, "prompts length"]]:
        """``token_ids`` and ``attention_mask``, padded to the longest prompt."""
        token_ids = self._token_ids(prompts)
        return _pad(token_ids, max(map(len, token_ids), default=0))

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
        """Yield embeddings by digest, the longest prompts first, so that the time left is never underestimated."""
        digests = list(prompts)
        token_ids = self._token_ids(list(prompts.values()))
        max_length = cast(int, self.spec.max_length)
        lengths = [*(length for length in LENGTHS if length < max_length), max_length]
        bucket_of = np.searchsorted(lengths, [len(ids) for ids in token_ids])
        tokens = TOKENS_ON_CPU if jax.default_backend() == "cpu" else TOKENS_ON_ACCELERATOR
        part: dict[bytes, Float32[np.ndarray, "embed"]] = {}
        for bucket in reversed(range(len(lengths))):
            rows = np.flatnonzero(bucket_of == bucket)
            batch = max(1, tokens // lengths[bucket])
            for start in range(0, len(rows), batch):
                own = rows[start : start + batch]
                query = _pad([token_ids[row] for row in own], lengths[bucket], batch=batch)
                embedding = np.asarray(_embed(self.module, self.variables, query))
                part.update({digests[row]: embedding[place] for place, row in enumerate(own)})
                if len(part) >= PROMPTS_PER_COMMIT:
                    yield part
                    part = {}
        if part:
            yield part

    def _token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch([valid_text(prompt) for prompt in prompts])]


@functools.partial(jax.jit, static_argnums=0)
def _embed(module: nn.Module, variables: Variables, query: Query) -> Array:
    return cast(Array, module.apply(variables, query))


def _pad(
    token_ids: Sequence[Sequence[int]], length: int, *, batch: int | None = None
) -> dict[str, Int32[np.ndarray, "batch length"]]:
    """Token ids and mask; both are 0 on padding."""
    shape = (len(token_ids) if batch is None else batch, length)
    query = {"token_ids": np.zeros(shape, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    for row, ids in enumerate(token_ids):
        query["token_ids"][row, : len(ids)] = ids
        query["attention_mask"][row, : len(ids)] = 1
    return query


def load_encoder(source: str | os.PathLike[str], *, max_length: int = 256) -> SentenceEncoder:
    """Load a sentence encoder: one of the BERT family with mean pooling, as sentence-transformers saves it.

    Args:
        source: a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, or a Hugging Face name; see
            :func:`routerjax.pretrained.locate`. Embeddings are scaled to unit length where ``modules.json`` says so.
        max_length: tokens of a prompt that are read, whatever the files say; part of the fingerprint.

    Raises:
        InputError: not found, damaged, or of another architecture or pooling.
    """
    folder = locate(source)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not a sentence encoder: no {name} in it")
    encoder = BertEncoder(**read_bert_config(folder).encoder)
    if not 2 <= max_length <= encoder.max_length:
        raise InputError(f"max_length must be in [2, {encoder.max_length}] for {source}, got {max_length}")
    module = SentenceEmbedding(encoder, normalize=_normalizes(folder))
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    expected = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), example))["params"]
    params = read_weights(folder / "model.safetensors", bert_names(encoder.model_type, head=False), expected)
    tokenizer_json = (folder / "tokenizer.json").read_bytes()
    described = {
        "weights": file_sha256(folder / "model.safetensors"),
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
        vocab_size = loaded.tokenizer.get_vocab_size()
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise InputError(f"{folder / 'tokenizer.json'} is not a tokenizer: {error}") from error
    if vocab_size > encoder.vocab_size:
        raise InputError(f"{folder}: the tokenizer has {vocab_size} tokens, the encoder only {encoder.vocab_size}")
    return loaded


def _normalizes(folder: Path) -> bool:
    """Whether embeddings are scaled to unit length; anything but mean pooling is refused."""
    for path in folder.glob("*_Pooling/config.json"):
        modes = [name for name, used in _json(path).items() if name.startswith("pooling_mode") and used is True]
        if modes != ["pooling_mode_mean_tokens"]:
            raise InputError(f"{path}: only mean pooling is supported, got {modes}")
    if not (folder / "modules.json").is_file():
        return False
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return any(module["type"].endswith(".Normalize") for module in modules)


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content
