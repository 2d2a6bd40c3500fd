"""Battles with embeddings that were published apart from them, row for row."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from routerjax.data.preferences import Preferences
from routerjax.data.readers import open_source, read_preferences
from routerjax.data.transformations import concatenate
from routerjax.errors import InputError
from routerjax.tables import matrix_column, require_columns, rows_not_finite

logger = logging.getLogger(__name__)

EMBEDDING_COLUMN = "embeddings"

Source = str | os.PathLike[str]


def read_aligned_battles(
    battle_source: Source | Sequence[Source], embedding_source: Source | Sequence[Source]
) -> tuple[Preferences, Float32[np.ndarray, "prompts embed"]]:
    """Read battles, and embeddings of their prompts that are aligned with them by row order.

    The form in which RouteLLM publishes what its similarity-weighted router compares with: row i of the embeddings
    belongs to row i of the battles that are left after prompts under 16 characters are dropped.

    Args:
        battle_source: as :func:`read_preferences` takes it (``lmsys/lmsys-arena-human-preference-55k``,
            ``routellm/gpt4_judge_battles``, or a file in that format); or several, in the order of their embeddings.
        embedding_source: a table with a column ``embeddings`` of lists of one length: a .parquet or .jsonl file, or a
            Hugging Face name (``routellm/arena_battles_embeddings``, ``routellm/gpt4_judge_battles_embeddings``); or
            several, one for each source of battles.

    Returns:
        The battles, and the embedding of each of their ``unique_prompts``. Where rows of one prompt have different
        embeddings, the first is taken, and a warning says how many differ, and by how much.

    Raises:
        InputError: a source cannot be read, or rows and embeddings do not match in number or width.

    Reference:
        ``SWRankingRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code.
    """
    battle_sources, embedding_sources = _several(battle_source), _several(embedding_source)
    if len(battle_sources) != len(embedding_sources):
        raise InputError(
            f"each source of battles needs one of embeddings, got {len(battle_sources)} and {len(embedding_sources)}"
        )
    parts, rows = [], []
    for battles_of, embeddings_of in zip(battle_sources, embedding_sources, strict=True):
        parts.append(read_preferences(battles_of))
        rows.append(_read_embeddings(embeddings_of))
        if len(rows[-1]) != len(parts[-1]):
            raise InputError(
                f"{embeddings_of} holds {len(rows[-1])} embeddings, but {battles_of} has {len(parts[-1])} battles once "
                "its short prompts are dropped: they must be of one set, and in its order"
            )
        if rows[-1].shape[1] != rows[0].shape[1]:
            widths = f"{rows[0].shape[1]} and {rows[-1].shape[1]}"
            raise InputError(f"{embedding_sources[0]} and {embeddings_of} must be equally wide, got {widths}")
    battles = concatenate(parts) if len(parts) > 1 else parts[0]
    return battles, _one_a_prompt(battles, np.concatenate(rows) if len(rows) > 1 else rows[0])


def _several(source: Source | Sequence[Source]) -> list[Source]:
    return [source] if isinstance(source, (str, os.PathLike)) else list(source)


def _read_embeddings(source: Source) -> Float32[np.ndarray, "rows embed"]:
    table = open_source(source)
    require_columns(table.columns, [EMBEDDING_COLUMN], source)
    try:
        embedding = matrix_column(table.read([EMBEDDING_COLUMN]), EMBEDDING_COLUMN)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    bad = rows_not_finite(embedding)
    if bad.size:
        raise InputError(f"{source}: row {bad[0]}: column {EMBEDDING_COLUMN} is not finite ({bad.size} such rows)")
    return embedding


def _one_a_prompt(
    battles: Preferences, embedding: Float32[np.ndarray, "battles embed"]
) -> Float32[np.ndarray, "prompts embed"]:
    # Prompts are numbered in the order of first appearance, so row k of `first` is where prompt k first appears.
    first = np.unique(battles.prompt_index, return_index=True)[1]
    first_row = first[battles.prompt_index]
    repeated = np.flatnonzero(first_row != np.arange(len(battles)))
    distance = np.abs(embedding[repeated] - embedding[first_row[repeated]]).max(axis=1)
    if (distance > 0).any():
        logger.warning(
            "%d of %d rows repeat a prompt with another embedding (by up to %.1e); the first is taken",
            np.count_nonzero(distance),
            len(battles),
            distance.max(),
        )
    return embedding[first]
