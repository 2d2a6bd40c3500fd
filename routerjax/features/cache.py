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
from routerjax.prompts import distinct, prompt_sha256, require_texts

logger = logging.getLogger(__name__)

# Another process may hold the file while it commits a few hundred embeddings; nobody needs it for longer.
LOCK_SECONDS = 60.0
KEYS_PER_QUERY = 500
# Prompts that are read and encoded together, so many of which are held at most beside the embeddings.
PROMPTS_PER_PART = 2048

EmbeddingByDigest = dict[bytes, Float32[np.ndarray, "embed"]]
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

    @property
    def folder(self) -> Path:
        """Folder of the file.

        Raises:
            OSError: as :func:`cache_folder`.
        """
        return cache_folder() if self._path is None else self._path.parent

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


def embed(
    prompts: Sequence[str],
    encode: Callable[[dict[bytes, str], dict[bytes, str]], Iterable[EmbeddingByDigest]],
    *,
    fingerprint: str,
    cache: EmbeddingCache | None,
    progress: bool,
) -> Float32[np.ndarray, "prompts embed"]:
    """Embed prompts part by part, each different one once: looked up in the cache, and what is not there encoded.

    Beside the embeddings, a few bytes for each prompt are held, and one part. A part's prompts, and which of them are
    encoded together, follow from the prompts and from what the cache held when the part began: a run that was killed
    makes the embeddings, bit for bit, that it would have made.

    Args:
        prompts: texts.
        encode: is given the prompts of a part and those of them that are not in the cache, by digest; yields the
            embeddings of the latter. What it yields is in the cache before it goes on.
        fingerprint: of the features.
        cache: looked up first and added to.
        progress: show a progress bar, if it takes more than two seconds.

    Returns:
        The embeddings; ``[0, 0]`` where there are no prompts.

    Raises:
        InputError: prompts that are no sequence of texts, or embeddings of another width than those in the cache.
    """
    require_texts(prompts)
    is_first, index, digest = distinct(prompts)
    different = itertools.compress(prompts, is_first.tobytes())
    embeddings = np.zeros((0, 0), np.float32)
    with tqdm.tqdm(total=len(digest), unit="prompt", disable=not progress, delay=2) as bar:
        for start in range(0, len(digest), PROMPTS_PER_PART):
            part = {prompt_sha256(prompt): prompt for prompt in itertools.islice(different, PROMPTS_PER_PART)}
            known = {} if cache is None else cache.get(fingerprint, list(part))
            bar.update(len(known))
            width = embeddings.shape[1] or len(next(iter(known.values()), ()))
            for made in encode(part, {key: prompt for key, prompt in part.items() if key not in known}):
                width = _common_width(fingerprint, width, made)
                known.update(made)
                if cache is not None:
                    cache.put(fingerprint, made)
                bar.update(len(made))
            if not start:
                embeddings = np.empty((len(prompts), width), np.float32)
            _common_width(fingerprint, embeddings.shape[1], known)
            rows = np.flatnonzero((index >= start) & (index < start + len(part)))
            embeddings[rows] = np.stack([known[key] for key in part])[index[rows] - start]
    return embeddings


def _common_width(fingerprint: str, width: int, embeddings: EmbeddingByDigest) -> int:
    """The width of embeddings, which must be ``width`` unless that is 0."""
    widths = sorted({width or len(next(iter(embeddings.values()), ())), *map(len, embeddings.values())})
    if len(widths) > 1:
        raise InputError(
            f"embeddings of {fingerprint} are {' and '.join(map(str, widths))} wide: another model is behind "
            "that name than before, whose embeddings are in the cache; set ROUTERJAX_CACHE to another folder"
        )
    return widths[0]
