"""The battles and the features that a configuration names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from routerjax.config import DataConfig, FeatureConfig
from routerjax.data import (
    ROUTELLM_STRONG,
    ROUTELLM_WEAK,
    Preferences,
    concatenate,
    golden_preferences,
    load_benchmark,
    read_preferences,
    smallest_by_hash,
    swap_sides,
)
from routerjax.errors import InputError
from routerjax.features import EmbeddingCache, FeatureSpec, open_encoder, read_embeddings
from routerjax.tables import ENDINGS

logger = logging.getLogger(__name__)


def load_preferences(config: DataConfig) -> Preferences:
    """Read all battles of a run, sides swapped at random, sources in the order of the configuration."""
    root = Path(config.root)
    parts = []
    for source in config.battles:
        local = root / source.path
        is_file = local.suffix in ENDINGS or local.is_file()
        battles = read_preferences(local if is_file else source.path, drop_where=source.drop_where, progress=True)
        parts.append(_weighted(battles, source.weight))
        logger.info("read %s: %d battles on %d prompts", source.path, len(battles), len(battles.unique_prompts))
    for source in config.golden:
        benchmark = load_benchmark(source.benchmark, root / source.root)
        if source.num_prompts is not None:
            benchmark, _ = smallest_by_hash(benchmark, source.num_prompts)
        names: dict[str, str] = {ROUTELLM_STRONG: source.strong, ROUTELLM_WEAK: source.weak}
        battles = golden_preferences(benchmark, pairs=[(ROUTELLM_STRONG, ROUTELLM_WEAK)], rename=names)
        parts.append(_weighted(battles, source.weight))
        logger.info("golden answers of %s: %d battles", source.benchmark, len(battles))
    if not parts:
        raise InputError("no battles: data.battles and data.golden are both empty; name at least one source")
    return swap_sides(concatenate(parts), seed=config.seed)


def _weighted(battles: Preferences, weight: float) -> Preferences:
    return dataclasses.replace(battles, weight=battles.weight * weight)


def embed(
    prompts: Sequence[str], config: FeatureConfig, *, root: Path, cache: EmbeddingCache | None
) -> tuple[Float32[np.ndarray, "prompts embed"], FeatureSpec]:
    """Embed ``prompts``; return the embeddings, and what a router must keep of where they came from."""
    if config.embeddings is not None:
        if config.truncation is not None:
            raise InputError(
                f"features.truncation={config.truncation!r} cannot be followed: the embeddings are given "
                f"({config.embeddings}); leave it out"
            )
        given = read_embeddings(root / config.embeddings)
        if len(given.embedding) != len(prompts):
            raise InputError(
                f"{config.embeddings} holds {len(given.embedding)} embeddings, expected {len(prompts)}: one for each "
                "different prompt of the battles, in the order in which the prompts first appear"
            )
        return given.embedding, given.spec(config.embeddings)
    encoder = open_encoder(
        config.encoder,
        max_length=config.max_length,
        truncation=config.truncation,
        dollars_per_million_tokens=config.dollars_per_million_tokens,
    )
    logger.info("encoding %d prompts with %s", len(prompts), config.encoder)
    return encoder.encode(prompts, progress=True, cache=cache), encoder.spec
