"""Embeddings on disk, so that a prompt is encoded once."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import tqdm
from jaxtyping import Float32

from routerjax.errors import InputError
from routerjax.prompts import prompt_sha256, require_texts

logger = logging.getLogger(__name__)

# Another process may hold the file while it commits a few hundred embeddings; nobody needs it for longer.
LOCK_SECONDS = 60.0
KEYS_PER_QUERY = 500

ResultT = TypeVar("ResultT")


def cache_folder() -> Path:
    """``$ROUTERJAX_CACHE``, or ``routerjax`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        OSError: none of them is set, and the user has no home directory.
    """
    named, base = os.environ.get("ROUTERJAX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if named:
            return Path(named).expanduser()
        # The specification of the XDG folders: a relative one counts as none.
        return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "routerjax"
    except RuntimeError as error:
        raise OSError(f"no folder for caches: {error}") from error


class EmbeddingCache:
    """Embeddings by (fingerprint, sha256 of the prompt), and how prompts were read, in one SQLite file without texts.

    Safe with several processes and threads at a time, and when one is killed: what was committed stays, nothing is
    half-written. Each row carries a checksum of its key and its content; one that does not fit is taken as missing,
    which a warning says. The file is opened when it is first needed. Where it cannot be read or written to, a warning
    says so and work goes on without.

    Args:
        path: the file, made with its folder if need be. Default ``embeddings.sqlite`` in :func:`cache_folder`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._given_up: set[str] = set()

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def get(self, fingerprint: str, prompts: Sequence[bytes]) -> dict[bytes, Float32[np.ndarray, "embed"]]:
        """Embeddings of those of ``prompts`` (sha256 digests) that are there, and as they were written.

        Raises:
            InputError: the file is no such cache.
        """
        rows = self.read(fingerprint, prompts)
        return {prompt: np.frombuffer(content, np.float32) for prompt, content in rows.items()}

    def put(self, fingerprint: str, embeddings: Mapping[bytes, Float32[np.ndarray, "embed"]]) -> None:
        """Add embeddings by digest, all or none of them.

        Raises:
            InputError: the file is no such cache.
        """
        self.write(fingerprint, {prompt: row.astype(np.float32).tobytes() for prompt, row in embeddings.items()})

    def read(self, fingerprint: str, prompts: Sequence[bytes]) -> dict[bytes, bytes]:
        """Content of the rows of those of ``prompts`` that are there, and as they were written; see :meth:`get`."""

        def select(connection: sqlite3.Connection) -> list[tuple[bytes, bytes, bytes]]:
            rows = []
            for start in range(0, len(prompts), KEYS_PER_QUERY):
                keys = prompts[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(keys))
                query = f"SELECT prompt, content, checksum FROM rows WHERE fingerprint = ? AND prompt IN ({marks})"
                rows += connection.execute(query, (fingerprint, *keys)).fetchall()
            return rows

        rows = self._run("read", select) or []
        known = {
            prompt: content
            for prompt, content, checksum in rows
            if isinstance(content, bytes) and checksum == _checksum(fingerprint, prompt, content)
        }
        if len(known) < len(rows):
            logger.warning(
                "%d rows of the cache %s are not as they were written (their checksums differ); made anew",
                *(len(rows) - len(known), self._path),
            )
        return known

    def write(self, fingerprint: str, rows: Mapping[bytes, bytes]) -> None:
        """Add rows by digest; see :meth:`put`."""
        checked = [(fingerprint, prompt, row, _checksum(fingerprint, prompt, row)) for prompt, row in rows.items()]

        def insert(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", checked)

        self._run("written to", insert)

    def _run(self, what: str, use: Callable[[sqlite3.Connection], ResultT]) -> ResultT | None:
        """Use the connection; None where the file cannot be opened, or used so, which is said once."""
        with self._lock:
            if what in self._given_up:
                return None
            try:
                if self._connection is None:
                    self._connection = self._open()
                return use(self._connection)
            except (OSError, sqlite3.OperationalError) as error:  # no home, no folder, a full disk, a lock
                self._given_up |= {"read", "written to"} if self._connection is None else {what}
                logger.warning(
                    "the embedding cache %s cannot be %s (%s): embeddings are not kept; set ROUTERJAX_CACHE to a "
                    "folder that can be written",
                    *(self._path or "of this user", what, error),
                )
            except sqlite3.DatabaseError as error:
                raise InputError(f"the embedding cache {self._path} is damaged ({error}); remove that file") from error
        return None

    def _open(self) -> sqlite3.Connection:
        self._path = self._path or cache_folder() / "embeddings.sqlite"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # For every thread: the cache's lock lets one at a time use it.
        connection = sqlite3.connect(self._path, timeout=LOCK_SECONDS, check_same_thread=False)
        try:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS rows (fingerprint TEXT, prompt BLOB, content BLOB, checksum BLOB, "
                "PRIMARY KEY (fingerprint, prompt)) WITHOUT ROWID"
            )
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _checksum(fingerprint: str, prompt: bytes, content: bytes) -> bytes:
    """Checksum of a row, its key included: an embedding under another prompt's key does not fit."""
    named = hashlib.sha256(fingerprint.encode()).digest()
    return hashlib.blake2b(named + prompt + content, digest_size=16).digest()


def prompt_digests(prompts: Sequence[str]) -> tuple[list[bytes], dict[bytes, str]]:
    """SHA-256 of each prompt, and the different prompts by it.

    Raises:
        InputError: prompts that are no sequence of texts.
    """
    require_texts(prompts)
    digests = [prompt_sha256(prompt) for prompt in prompts]
    return digests, dict(zip(digests, prompts, strict=True))


def encode_once(
    prompts: Mapping[bytes, str],
    encode: Callable[[dict[bytes, str]], Iterable[dict[bytes, Float32[np.ndarray, "embed"]]]],
    *,
    fingerprint: str,
    cache: EmbeddingCache | None,
    progress: bool,
) -> dict[bytes, Float32[np.ndarray, "embed"]]:
    """The embedding of each prompt, by digest: looked up in the cache, and what is not there encoded.

    Args:
        prompts: texts by digest.
        encode: yields the embeddings of prompts, both by digest, part by part; each part is in the cache before the
            next is asked for, so that a run that fails or is killed loses one part at most.
        fingerprint: of the features.
        cache: looked up first and added to.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: embeddings of another width than those that are in the cache.
    """
    known = {} if cache is None else cache.get(fingerprint, list(prompts))
    missing = {digest: prompt for digest, prompt in prompts.items() if digest not in known}
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
    return known
