"""Sentence encoders: text to embeddings with a pretrained BERT, in a few static shapes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from routerjax.config import Truncation
from routerjax.errors import InputError
from routerjax.features.cache import EmbeddingCache, encode_once
from routerjax.features.cut_report import Reading, report_cut
from routerjax.features.spec import FeatureSpec
from routerjax.features.tokens import TextTokenizer, tokenizer_for
from routerjax.models import BertEncoder, SentenceEmbedding
from routerjax.pretrained import (
    bert_names,
    configured_tokenizer,
    locate,
    read_bert_config,
    read_json,
    read_tokenizer_files,
    read_weights,
    truncation_side,
    weights_sha256,
)
from routerjax.typing import Array, Query, Variables

# So much work at most is lost when an encoding run is killed.
PROMPTS_PER_COMMIT = 256
PROMPTS_PER_READING = 1024
MEAN = ["pooling_mode_mean_tokens"]


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A frozen sentence encoder; see :func:`load_encoder`.

    Attributes:
        spec: width, length and fingerprint of what it makes.
        module: linen, ``{"token_ids", "attention_mask"} -> embedding [batch, embed]``.
        variables: of the module.
        tokenizer: the real tokenizer, which reads ``spec.max_length`` tokens.
    """

    spec: FeatureSpec
    module: SentenceEmbedding
    variables: Variables
    tokenizer: TextTokenizer

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Int32[np.ndarray, "prompts length"]]:
        """``token_ids`` and ``attention_mask``, padded to the longest prompt."""
        return self.tokenizer.pad(self.tokenizer.token_ids(prompts))

    def encode(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "prompts embed"]:
        """Embed prompts; equal prompts are encoded once. How many were cut is logged, cached or not.

        Args:
            prompts: texts, of which ``spec.max_length`` tokens are read.
            cache: looked up first and added to, a few hundred prompts at a time.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: a prompt that is not text.
        """
        token_ids: dict[bytes, Int32[np.ndarray, "length"]] = {}
        different = list(dict.fromkeys(prompts)) if not isinstance(prompts, str) else prompts
        rows = encode_once(
            different,
            functools.partial(self._read, token_ids),
            fingerprint=f"reading {self.tokenizer.fingerprint}",
            cache=cache,
            progress=progress,
        )
        report_cut([Reading.from_row(row) for row in rows], self.tokenizer)
        embeddings = encode_once(
            prompts,
            functools.partial(self._encode_sorted, token_ids),
            fingerprint=self.spec.fingerprint,
            cache=cache,
            progress=progress,
        )
        return np.stack(embeddings) if embeddings else np.zeros((0, self.spec.width), np.float32)

    def _read(
        self, token_ids: dict[bytes, Int32[np.ndarray, "length"]], prompts: dict[bytes, str]
    ) -> Iterator[dict[bytes, Float32[np.ndarray, "3"]]]:
        """Yield how prompts are read, a thousand at a time, and keep their tokens, which are encoded next."""
        all_digests = list(prompts)
        for start in range(0, len(all_digests), PROMPTS_PER_READING):
            digests = all_digests[start : start + PROMPTS_PER_READING]
            read = self.tokenizer.read([prompts[digest] for digest in digests])
            token_ids.update(zip(digests, read.token_ids, strict=True))
            readings = map(Reading.of, read.token_ids, read.is_cut)
            yield {digest: reading.to_row() for digest, reading in zip(digests, readings, strict=True)}

    def _encode_sorted(
        self, token_ids: dict[bytes, Int32[np.ndarray, "length"]], prompts: dict[bytes, str]
    ) -> Iterator[dict[bytes, Float32[np.ndarray, "embed"]]]:
        """Yield embeddings by digest, a few hundred at a time."""
        digests = list(prompts)
        unread = [digest for digest in digests if digest not in token_ids]
        token_ids.update(
            zip(unread, self.tokenizer.read([prompts[digest] for digest in unread]).token_ids, strict=True)
        )
        part: dict[bytes, Float32[np.ndarray, "embed"]] = {}
        for rows, query in self.tokenizer.batches([token_ids[digest] for digest in digests]):
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


def load_encoder(
    source: str | os.PathLike[str],
    *,
    max_length: int = 256,
    truncation: Truncation | None = None,
    download: bool = True,
) -> SentenceEncoder:
    """Load a sentence encoder: one of the BERT family with mean pooling, as sentence-transformers saves it.

    Args:
        source: a folder with ``config.json``, ``model.safetensors`` (or shards and their index) and
            ``tokenizer.json``, or a Hugging Face name; see :func:`routerjax.pretrained.locate`. Embeddings are scaled
            to unit length where ``modules.json`` says so.
        max_length: tokens of a prompt that are read, whatever the files say; part of the fingerprint.
        truncation: what is left out of a longer prompt (see :class:`TextTokenizer`), likewise; None for what the files
            of the tokenizer say.
        download: see :func:`routerjax.pretrained.locate`.

    Raises:
        InputError: not found, damaged, or of another architecture or pooling.
    """
    folder = locate(source, download=download)
    encoder = BertEncoder(**read_bert_config(folder).encoder)
    try:
        files = read_tokenizer_files(folder)
        side = truncation or truncation_side(files)
        tokenizer = tokenizer_for(encoder, configured_tokenizer(files, encoder.model_type), max_length, side)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    module = SentenceEmbedding(encoder, normalize=mean_is_normalized(folder))
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    expected = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), example))["params"]
    params = read_weights(folder, bert_names(encoder.model_type, head=False), expected)
    described = {
        "weights": weights_sha256(folder),
        "tokenizer": hashlib.sha256(tokenizer.tokenizer_json).hexdigest(),
        "max_length": max_length,
        "truncation": side,
        "pooling": "mean",
        "normalize": module.normalize,
    }
    spec = FeatureSpec(
        kind="encoder",
        source=os.fspath(source),
        width=encoder.width,
        fingerprint=hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        max_length=max_length,
        truncation=side,
    )
    return SentenceEncoder(
        spec=spec,
        module=module,
        variables={"params": jax.tree.map(jnp.asarray, params)},
        tokenizer=tokenizer,
    )


def pools_by_mean(folder: Path) -> bool:
    """Whether an encoder may be read as a sentence encoder: its files say mean pooling, or nothing of pooling."""
    return all(modes == MEAN for modes in _pooling_modes(folder).values())


def _pooling_modes(folder: Path) -> dict[Path, list[str]]:
    return {
        path: [
            name
            for name, used in read_json(path, dict, folder=folder).items()
            if name.startswith("pooling_mode") and used is True
        ]
        for path in folder.glob("*_Pooling/config.json")
    }


def mean_is_normalized(folder: Path) -> bool:
    """Whether a sentence encoder scales the mean of its hidden states to unit length.

    Raises:
        InputError: it pools in another way than by the mean, or its files are damaged.
    """
    for path, modes in _pooling_modes(folder).items():
        if modes != MEAN:
            raise InputError(f"{path}: only mean pooling is supported, got {modes}")
    path = folder / "modules.json"
    modules = read_json(path, list) if path.is_file() else []
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise InputError(f"{path}: each module must have a type, got {module!r}")
    return any(module["type"].endswith(".Normalize") for module in modules)
