"""Battles that a configuration names."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from routerjax.config import DataConfig
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
