"""Embeddings on disk, so that a prompt is encoded once."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm
from jaxtyping import Float32

from routerjax.errors import InputError
from routerjax.prompts import prompt_sha256, require_texts

# Another process may hold the file while it commits a few hundred embeddings; nobody needs it for longer.
LOCK_SECONDS = 60.0
KEYS_PER_QUERY = 500


def cache_folder() -> Path:
    """``$ROUTERJAX_CACHE``, or ``~/.cache/routerjax``."""
    return Path(os.environ.get("ROUTERJAX_CACHE") or Path.home() / ".cache" / "routerjax")


class EmbeddingCache:
    """A table (fingerprint, sha256 of the prompt) -> embedding in one SQLite file; the texts are not kept.

    Safe with several processes at a time, and when one is killed: what was committed stays, nothing is half-written.

    Args:
        path: the file, made with its folder if need be. Default ``$ROUTERJAX_CACHE/embeddings.sqlite``, or
            ``~/.cache/routerjax/embeddings.sqlite``.

    Raises:
        InputError: the file is not such a table.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else cache_folder() / "embeddings.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._connection = sqlite3.connect(self.path, timeout=LOCK_SECONDS)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS embeddings "
                "(fingerprint TEXT, prompt BLOB, embedding BLOB, PRIMARY KEY (fingerprint, prompt)) WITHOUT ROWID"
            )

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def get(self, fingerprint: str, prompts: Sequence[bytes]) -> dict[bytes, Float32[np.ndarray, "embed"]]:
        """Those of ``prompts`` (sha256 digests) that are there."""
        found = {}
        with self._errors():
            for start in range(0, len(prompts), KEYS_PER_QUERY):
                keys = prompts[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(keys))
                rows = self._connection.execute(
                    f"SELECT prompt, embedding FROM embeddings WHERE fingerprint = ? AND prompt IN ({marks})",
                    (fingerprint, *keys),
                )
                found.update({prompt: np.frombuffer(embedding, np.float32) for prompt, embedding in rows})
        return found

    def put(self, fingerprint: str, embeddings: Mapping[bytes, Float32[np.ndarray, "embed"]]) -> None:
        """Add embeddings by digest, all or none of them."""
        rows = [
            (fingerprint, prompt, embedding.astype(np.float32).tobytes()) for prompt, embedding in embeddings.items()
        ]
        with self._errors(), self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # disk full, read-only, locked
            raise OSError(f"the embedding cache {self.path}: {error}; set ROUTERJAX_CACHE to another folder") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"the embedding cache {self.path} is damaged ({error}); remove that file") from error


def encode_once(
    prompts: Sequence[str],
    encode: Callable[[dict[bytes, str]], Iterable[dict[bytes, Float32[np.ndarray, "embed"]]]],
    *,
    fingerprint: str,
    cache: EmbeddingCache | None,
    progress: bool,
) -> list[Float32[np.ndarray, "embed"]]:
    """The embedding of each prompt: looked up in the cache, and what is not there encoded, equal prompts once.

    Args:
        prompts: texts.
        encode: yields the embeddings of prompts, both by digest, part by part; each part is in the cache before the
            next is asked for, so that a run that fails or is killed loses one part at most.
        fingerprint: of the features.
        cache: looked up first and added to.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: a prompt that is not text; or embeddings of another width than those that are in the cache.
    """
    require_texts(prompts)
    digests = [prompt_sha256(prompt) for prompt in prompts]
    known = {} if cache is None else cache.get(fingerprint, list(dict.fromkeys(digests)))
    missing = {digest: prompt for digest, prompt in zip(digests, prompts, strict=True) if digest not in known}
    with tqdm.tqdm(total=len(missing), unit="prompt", disable=not progress or not missing, delay=2) as bar:
        for part in encode(missing):
            widths = sorted({len(embedding) for embedding in (*part.values(), *itertools.islice(known.values(), 1))})
            if len(widths) > 1:
                raise InputError(
                    f"embeddings of {fingerprint} are {' and '.join(map(str, widths))} wide: another model is behind "
                    "that name than before, whose embeddings are in the cache; set ROUTERJAX_CACHE to another folder"
                )
            known.update(part)
            if cache is not None:
                cache.put(fingerprint, part)
            bar.update(len(part))
    return [known[digest] for digest in digests]
