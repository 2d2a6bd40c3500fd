"""Embedding shared out over processes, through files beside the cache."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from routerjax.atomic import atomic_file
from routerjax.features.cache import PROMPTS_PER_PART, EmbeddingCache
from routerjax.features.featurizer import Featurizer, HostQuery
from routerjax.prompts import distinct, require_texts

FOLDER = "shared"


def shared_query(
    featurizer: Featurizer,
    prompts: Sequence[str],
    cache: EmbeddingCache,
    index: int,
    count: int,
    barrier: Callable[[], object],
    *,
    progress: bool = False,
) -> HostQuery:
    """Make the query of all prompts in each of several processes, each of which embeds every ``count``-th part.

    A part (2,048 different prompts) is written whole, by rename, to a folder beside the cache, and the other processes
    read it there: all have the same embeddings, bit for bit. Its name says which features and prompts it is of; what a
    killed run left there is used by the next one. The files are removed when all processes have read them.

    Args:
        featurizer: the same in all processes. One that keeps nothing in a cache, as of tokens, makes its query here.
        prompts: texts, the same in all processes.
        cache: in a folder that all processes see.
        index: of this process, from 0.
        count: of processes.
        barrier: returns when all processes have called it; it is called twice.
        progress: show a progress bar, if it takes more than two seconds.

    Returns:
        See :meth:`Featurizer.query`.

    Raises:
        InputError: as :meth:`Featurizer.query`, in the process whose part it is; or prompts that are no texts.
        OSError: the folder cannot be written to, or another process did not write its part.
    """
    if count == 1 or not featurizer.uses_cache:
        return featurizer.query(prompts, cache=cache, progress=progress)
    require_texts(prompts)
    is_first, place, digest = distinct(prompts)
    folder = cache.folder / FOLDER
    paths = []
    for start in range(0, len(digest), PROMPTS_PER_PART):
        content = digest[start : start + PROMPTS_PER_PART].tobytes()
        paths.append(folder / f"{hashlib.sha256(featurizer.fingerprint.encode() + b'|' + content).hexdigest()}.npy")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        different = itertools.compress(prompts, is_first.tobytes())
        for number, path in enumerate(paths):
            part = list(itertools.islice(different, PROMPTS_PER_PART))
            if number % count == index and not path.exists():
                embedding = featurizer.query(part, cache=cache, progress=progress)["embedding"]
                with atomic_file(path) as temporary, temporary.open("wb") as stream:
                    np.save(stream, embedding)
    except BaseException:
        barrier()  # the others must not wait for this process; they miss its part
        barrier()
        raise
    barrier()
    try:
        embeddings = np.zeros((0, 0), np.float32)
        for number, path in enumerate(paths):
            start = number * PROMPTS_PER_PART
            part = _read(path, number % count, min(PROMPTS_PER_PART, len(digest) - start))
            if not number:
                embeddings = np.empty((len(prompts), part.shape[1]), np.float32)
            rows = np.flatnonzero((place >= start) & (place < start + len(part)))
            embeddings[rows] = part[place[rows] - start]
    finally:
        barrier()
    for path in paths[index::count]:
        path.unlink(missing_ok=True)
    return {"embedding": embeddings if len(embeddings) else np.zeros((0, featurizer.width), np.float32)}


def _read(path: Path, writer: int, rows: int) -> np.ndarray:
    try:
        embedding = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise OSError(
            f"process {writer} did not embed its part of the prompts, and its log says why, or ROUTERJAX_CACHE is no "
            f"folder that all processes see: {path} is missing"
        ) from error
    except (ValueError, EOFError) as error:
        raise OSError(f"{path} is damaged: remove it") from error
    if embedding.shape[:1] != (rows,) or embedding.ndim != 2 or embedding.dtype != np.float32:
        raise OSError(f"{path} is damaged: remove it")
    return embedding
