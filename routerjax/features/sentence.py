"""Sentence encoders: text to embeddings with a frozen pretrained encoder, in a few static shapes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from routerjax.config import Count, Truncation
from routerjax.errors import InputError
from routerjax.features.cache import EmbeddingByDigest, EmbeddingCache, embed
from routerjax.features.cut_report import CutReport, read_once
from routerjax.features.featurizer import Featurizer, HostQuery, TextFunction, register_featurizer
from routerjax.features.tokenizer import TextTokenizer, tokenizer_for
from routerjax.models import (
    EMBEDDING_LAYERS,
    Pooling,
    SentenceEmbedding,
    describe_encoder,
    encoder_sizes,
    example_tokens,
    make_encoder,
    up_to_layer,
)
from routerjax.pretrained import (
    LAYER_TENSORS,
    RESOLVED_FILE,
    TOKENIZER_FILE,
    SentenceModules,
    count_numbers,
    encoder_names,
    locate,
    read_encoder,
    read_sentence_modules,
    read_text_file,
    read_tokenizer,
    read_weights,
    require_sizes,
    resolved_tokenizer,
    weights_sha256,
)
from routerjax.typing import Array, PyTree, Query, Variables

logger = logging.getLogger(__name__)

OF_TRAINING_ALONE = ("dropout_rate", "attention_dropout_rate", "initializer_range")


class SentenceEncoder(NamedTuple):
    """Frozen sentence encoder.

    Attributes:
        module: linen, ``{"token_ids", "attention_mask"} -> embedding [batch, embed]``.
        variables: of the module.
        tokenizer: the real tokenizer, which keeps as many tokens of a prompt as the featurizer says.
    """

    module: SentenceEmbedding
    variables: Variables
    tokenizer: TextTokenizer


@register_featurizer
@dataclass(frozen=True, kw_only=True)
class SentenceFeaturizer(Featurizer):
    """Featurizer that embeds text with a frozen sentence encoder; see :func:`load_encoder`.

    Attributes:
        source: the encoder's folder or Hugging Face name.
        width: of an embedding.
        fingerprint: hash of all that changes an embedding: weights, sizes, modules, tokenizer, length, truncation.
        max_length: tokens of a prompt that are read.
        truncation: what is left out of a longer prompt, see :class:`TextTokenizer`.
        resolved_tokenizer: the tokenizer, where it is not the encoder's ``tokenizer.json`` as it stands.
        pooling, layer: see :func:`load_encoder`.
    """

    kind = "sentence"
    takes_encoder = True
    uses_cache = True

    source: str
    width: Count
    fingerprint: str
    max_length: Count
    truncation: Truncation
    pooling: Pooling | None = None
    layer: Count | None = None
    resolved_tokenizer: bytes | None = field(default=None, repr=False)

    @property
    def files(self) -> Mapping[str, bytes]:
        """The tokenizer that transformers made of the encoder's files, so that scoring need not ask it again."""
        return {} if self.resolved_tokenizer is None else {RESOLVED_FILE: self.resolved_tokenizer}

    @functools.cached_property
    def encoder(self) -> SentenceEncoder:
        """The encoder itself, loaded on first use; what only a router's folder names is not downloaded.

        Raises:
            InputError: it is not found, damaged, or not the one whose fingerprint this is.
        """
        place = vars(self).get("_place")
        source = self.source if place is None else place
        loaded = _load(
            locate(source, download=place is not None),
            source,
            self.max_length,
            self.truncation,
            pooling=self.pooling,
            layer=self.layer,
            kept=self.files,
        )
        if loaded.fingerprint != self.fingerprint:
            raise self.refusal(f"the encoder {source} has", loaded.fingerprint)
        return loaded.encoder

    def at(self, encoder: str) -> SentenceFeaturizer:
        """Look for the encoder in another folder, or under another Hugging Face name."""
        moved = copy.copy(self)
        vars(moved).pop("encoder", None)
        vars(moved)["_place"] = encoder
        return moved

    def require_text(self) -> None:
        """Load the encoder."""
        _ = self.encoder

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them, without the tokenizer."""
        return {name: value for name, value in super().to_dict().items() if name != "resolved_tokenizer"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """The inverse of :meth:`to_dict`; see :meth:`Featurizer.from_dict`."""
        if "resolved_tokenizer" in fields or not set(files) <= {RESOLVED_FILE}:
            raise InputError(f"a sentence encoder's router keeps no file but {RESOLVED_FILE}, got {', '.join(files)}")
        return dataclasses.replace(super().from_dict(fields, {}), resolved_tokenizer=files.get(RESOLVED_FILE))

    def text_function(self) -> TextFunction:
        """The tokenizer and the encoder."""
        module, variables, tokenizer = self.encoder

        def embed(variables: Variables, tokens: Query) -> Query:
            return {"embedding": cast(Array, module.apply(variables, tokens))}

        return TextFunction(tokenizer, variables, embed)

    def query(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> HostQuery:
        """See :meth:`encode`."""
        return {"embedding": self.encode(prompts, cache=cache, progress=progress)}

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Int32[np.ndarray, "prompts length"]]:
        """``token_ids`` and ``attention_mask``, padded to the longest prompt."""
        tokenizer = self.encoder.tokenizer
        return tokenizer.pad(tokenizer.token_ids(prompts))

    def encode(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "prompts embed"]:
        """Embed prompts; equal prompts are encoded once. How many were cut is logged, cached or not.

        Args:
            prompts: texts, of which ``max_length`` tokens are read.
            cache: looked up first and added to, 2,048 prompts at a time.
            progress: show a progress bar, if it takes more than two seconds.

        Raises:
            InputError: a prompt that is not text.
        """
        report = CutReport()
        with report.collecting():
            encode = functools.partial(self._encode_part, cache)
            embedding = embed(prompts, encode, fingerprint=self.fingerprint, cache=cache, progress=progress)
        report.log()
        return embedding if len(embedding) else np.zeros((0, self.width), np.float32)

    def _encode_part(
        self, cache: EmbeddingCache | None, prompts: dict[bytes, str], missing: dict[bytes, str]
    ) -> Iterator[EmbeddingByDigest]:
        """Yield the embeddings of ``missing``, all at once: which are encoded together must not depend on a kill."""
        module, variables, tokenizer = self.encoder
        token_ids = read_once(tokenizer, prompts, cache)
        unread = [digest for digest in missing if digest not in token_ids]
        read = tokenizer.read([missing[digest] for digest in unread]).token_ids
        token_ids |= dict(zip(unread, read, strict=True))
        digests, part = list(missing), {}
        for rows, query in tokenizer.batches([token_ids[digest] for digest in digests]):
            embedding = np.asarray(_embed(module, variables, query))
            part.update({digests[row]: embedding[place] for place, row in enumerate(rows)})
        if part:
            yield part


@functools.partial(jax.jit, static_argnums=0)
def _embed(module: nn.Module, variables: Variables, query: Query) -> Array:
    # Accelerators multiply in lower precision unless told otherwise; embeddings in the cache are the same everywhere.
    with jax.default_matmul_precision("highest"):
        return cast(Array, module.apply(variables, query))


def load_encoder(
    source: str | os.PathLike[str],
    *,
    max_length: int = 256,
    truncation: Truncation | None = None,
    pooling: Pooling | None = None,
    layer: int | None = None,
) -> SentenceFeaturizer:
    """Load a sentence encoder, as sentence-transformers saves it: of the BERT family, or a decoder.

    Its modules are followed: pooling, dense layers, norms, lower case, and the prompt that the library puts before
    each text by default. A plain encoder without ``modules.json`` is read as the library reads it: by the mean.
    Embeddings are computed in float32, matmuls too, on accelerators as on CPU.

    Args:
        source: a folder with ``modules.json`` and what it names, or with ``config.json``, ``model.safetensors`` (or
            shards and their index) and ``tokenizer.json``; or a Hugging Face name: see
            :func:`routerjax.pretrained.locate`.
        max_length: tokens of a prompt that are read, whatever the files say; another length than theirs is logged.
        truncation: what is left out of a longer prompt (see :class:`TextTokenizer`); None for what the files of the
            tokenizer say.
        pooling: how hidden states become one vector; None for what the folder says, ``mean`` where it says nothing.
        layer: the last whose hidden states are pooled; None for the last that there is.

    Returns:
        A featurizer whose encoder is loaded, and whose fingerprint covers all that changes an embedding: weights,
        sizes, modules, tokenizer, length, truncation, prompt.

    Raises:
        InputError: not found, damaged, or of another architecture or with modules that are not computed here.
    """
    return _load(locate(source), source, max_length, truncation, pooling=pooling, layer=layer)


def _load(
    folder: Path,
    source: str | os.PathLike[str],
    max_length: int,
    truncation: Truncation | None,
    *,
    pooling: Pooling | None,
    layer: int | None,
    kept: Mapping[str, bytes] | None = None,
) -> SentenceFeaturizer:
    """Load the encoder in ``folder``; transformers is not asked if a router says which files it keeps."""
    modules = read_sentence_modules(folder, chooses_pooling=pooling is not None)
    path = modules.transformer / "config.json"
    described = up_to_layer(read_encoder(modules.transformer), layer, "features.layer")
    encoder = make_encoder(described, f"{path}: encoder")
    require_sizes(encoder_sizes(encoder), count_numbers(modules.transformer), path)
    pooled = cast("tuple[Pooling, ...]", modules.pooling if pooling is None else (pooling,))
    module = SentenceEmbedding(
        encoder,
        pooled,
        tuple(EMBEDDING_LAYERS[layer.kind](**layer.attributes) for layer in modules.layers),
    )
    if kept is None:
        files, configured_truncation = read_tokenizer(
            modules.transformer, vocab_size=module.encoder.vocab_size, lowercase=modules.lowercase
        )
    else:
        files, configured_truncation = (
            kept or {TOKENIZER_FILE: read_text_file(modules.transformer / TOKENIZER_FILE)},
            "right",
        )
    try:
        tokenizer = tokenizer_for(
            module.encoder,
            resolved_tokenizer(files),
            max_length,
            truncation or configured_truncation,
            prefix=modules.prefix,
        )
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    if modules.max_length not in (None, max_length):
        level = logging.INFO if max_length < modules.max_length else logging.WARNING
        logger.log(level, "%s is meant for %d tokens, %d are read: max_length", folder, modules.max_length, max_length)
    identity = {
        "weights": [weights_sha256(path) for path in (modules.transformer, *_folders(modules))],
        "encoder": {name: value for name, value in described.items() if name not in OF_TRAINING_ALONE},
        "pooling": pooled,
        "layers": [(layer.kind, layer.attributes) for layer in modules.layers],
        "tokenizer": tokenizer.fingerprint,
    }
    featurizer = SentenceFeaturizer(
        source=os.fspath(source),
        width=module.width,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        max_length=max_length,
        truncation=tokenizer.truncation,
        resolved_tokenizer=files.get(RESOLVED_FILE),
        pooling=pooling,
        layer=layer,
    )
    variables = {"params": jax.tree.map(jnp.asarray, _read_params(modules, module))}
    vars(featurizer)["encoder"] = SentenceEncoder(module, variables, tokenizer)
    return featurizer


def _folders(modules: SentenceModules) -> list[Path]:
    return [layer.folder for layer in modules.layers if layer.kind in LAYER_TENSORS]


def _read_params(modules: SentenceModules, module: SentenceEmbedding) -> PyTree:
    expected = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), example_tokens()))["params"]
    names = encoder_names(describe_encoder(module.encoder), modules.transformer)
    params = read_weights(modules.transformer, names, {"encoder": expected["encoder"]})
    for place, layer in enumerate(modules.layers):
        if layer.kind in LAYER_TENSORS:
            name = f"layers_{place}"
            params[name] = read_weights(layer.folder, LAYER_TENSORS[layer.kind], expected[name])
    return params
