"""Scoring of a table of prompts, chunk by chunk: in bounded memory, whole or not at all, and resumable."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import pyarrow as pa
import tqdm

from routerjax.errors import InputError, RowError
from routerjax.features import CutReport, EmbeddingCache
from routerjax.pipeline.score_part import open_part, part_path
from routerjax.policies import route
from routerjax.router import Router
from routerjax.tables import STANDARD_OUTPUT, PromptTable, open_prompts, table_writer

CHUNK_ROWS = 8192
"""Rows that are scored together; which those are decides the last bits of a score."""


def score_table(
    router: Router,
    source: str,
    output: str,
    *,
    router_sha256: str,
    input_format: str | None = None,
    resume: bool = False,
    progress: bool = False,
) -> None:
    """Write a table of prompts with the win probability, and the model that each prompt is routed to, added.

    The table is read chunk by chunk. The results of each chunk are kept in ``OUTPUT.part`` until all are there; then
    the output is written, whole or not at all. A run that is killed goes on after its last finished chunk, and ends
    with the same output, bit for bit.

    Args:
        router: with the pair, or the policy, and the threshold that are wanted.
        source: see :func:`routerjax.tables.open_prompts`.
        output: path of a new table, by its ending; ``-`` prints JSON lines, once all are scored.
        router_sha256: names the router's weights and features, so that a run is resumed with the same.
        input_format: see :func:`routerjax.tables.open_prompts`.
        resume: go on with the run whose results are in ``OUTPUT.part``.
        progress: show progress bars, where something takes more than two seconds.

    Raises:
        InputError: as :func:`routerjax.tables.open_prompts`, before anything is scored; the run to resume is another;
            or a prompt that the router cannot score (row named).
    """
    table = open_prompts(
        source,
        input_format=input_format,
        output=output,
        refuse=router.featurizer.require_prompts,
        progress=progress,
    )
    clashing = {"win_prob", "model"} & set(table.table.columns)
    if clashing:
        raise InputError(f"{source} has a column {min(clashing)} already, which score would write: rename it")
    # What is scored in one chunk has nothing to resume.
    keeps = resume or (output != STANDARD_OUTPUT and table.rows > CHUNK_ROWS)
    identity = {
        "router": router_sha256,
        "policy": router.policy.to_dict(),
        "input": table.sha256() if keeps else "",
        "input format": input_format,
        "chunk": CHUNK_ROWS,
        "versions": {name: importlib.metadata.version(name) for name in ("routerjax", "jax")},
        "backend": jax.default_backend(),
    }
    with open_part(
        part_path(output) if keeps else None,
        identity,
        rows=table.rows,
        chunk_rows=CHUNK_ROWS,
        dtype=np.float32 if router.has_pair else np.int32,
        resume=resume,
    ) as part:
        score = router.win_prob if router.has_pair else functools.partial(_columns_of_models, router)
        for results in score_chunks(score, table, done=part.chunks * CHUNK_ROWS, progress=progress):
            part.append(results)
        if keeps and table.sha256() != identity["input"]:
            kept = part_path(output)
            raise InputError(f"{source} was changed while it was scored: remove {kept}, and score it again")
        with table_writer(output) as write:
            for rows, results in zip(table.rows_for(output, CHUNK_ROWS), part.read(), strict=True):
                write(rows, _columns(router, results))


def score_chunks(
    score: Callable[..., np.ndarray], table: PromptTable, *, done: int = 0, progress: bool = False
) -> Iterator[np.ndarray]:
    """Score prompts chunk by chunk, and log once how many were cut.

    Args:
        score: ``(prompts, cache=...) -> results``, one a prompt.
        table: of prompts.
        done: rows that are left out.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: as ``score``; a row is that of the table.
    """
    report, start = CutReport(), 0
    bar = tqdm.tqdm(total=table.rows, initial=min(done, table.rows), unit="prompt", disable=not progress, delay=2)
    with EmbeddingCache() as cache, bar:
        for prompts in table.prompts(CHUNK_ROWS) if done < table.rows else ():
            if start >= done:
                try:
                    with report.collecting():
                        results = score(prompts, cache=cache)
                except RowError as error:
                    raise error.at(start + error.row) from error
                yield results
                bar.update(len(prompts))
            start += len(prompts)
    report.log()


def _columns_of_models(router: Router, prompts: Sequence[str], cache: EmbeddingCache) -> np.ndarray:
    column_of = {model: column for column, model in enumerate(router.models)}
    return np.asarray([column_of[model] for model in router.route(prompts, cache=cache)], np.int32)


def _columns(router: Router, results: np.ndarray) -> dict[str, pa.Array]:
    """Columns that are added to the rows of a chunk."""
    if not router.has_pair:
        return {"model": pa.array([router.models[column] for column in results], pa.string())}
    if router.threshold is None:
        return {"win_prob": pa.array(results)}
    chosen = [router.strong if is_strong else router.weak for is_strong in route(results, router.threshold)]
    return {"win_prob": pa.array(results), "model": pa.array(chosen, pa.string())}
