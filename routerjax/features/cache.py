"""Embeddings on disk, so that a prompt is encoded once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm
from jaxtyping import Float32

from routerjax.errors import InputError
from routerjax.prompts import prompt_sha256, require_texts

logger = logging.getLogger(__name__)

# Another process may hold the file while it commits a few hundred embeddings; nobody needs it for longer.
LOCK_SECONDS = 60.0
# Tables, each with the column of its content; "embeddings", without checksums, was that of earlier versions.
EMBEDDINGS, READINGS = ("checked_embeddings", "embedding"), ("readings", "reading")
KEYS_PER_QUERY = 500


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
    which a warning says. The file is opened when it is first needed. Where it cannot be, or not written to, a warning
    says so and work goes on without; a file that can only be read is read.

    Args:
        path: the file, made with its folder if need be. Default ``embeddings.sqlite`` in :func:`cache_folder`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._lock = threading.RLock()
        self._is_open = self._can_write = False
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._is_open = None, False

    def get(self, fingerprint: str, prompts: Sequence[bytes]) -> dict[bytes, Float32[np.ndarray, "embed"]]:
        """Embeddings of those of ``prompts`` (sha256 digests) that are there, and as they were written.

        Raises:
            InputError: the file holds no such tables.
        """
        rows = self._get(EMBEDDINGS, fingerprint, prompts)
        return {prompt: np.frombuffer(content, np.float32) for prompt, content in rows.items()}

    def put(self, fingerprint: str, embeddings: Mapping[bytes, Float32[np.ndarray, "embed"]]) -> None:
        """Add embeddings by digest, all or none of them.

        Raises:
            InputError: the file holds no such tables.
        """
        rows = {prompt: embedding.astype(np.float32).tobytes() for prompt, embedding in embeddings.items()}
        self._put(EMBEDDINGS, fingerprint, rows)

    def get_readings(self, fingerprint: str, prompts: Sequence[bytes]) -> dict[bytes, bytes]:
        """Readings of prompts by a tokenizer of that fingerprint; see :meth:`get`, and :class:`.cut_report.Reading`."""
        return self._get(READINGS, fingerprint, prompts)

    def put_readings(self, fingerprint: str, readings: Mapping[bytes, bytes]) -> None:
        """Add readings by digest; see :meth:`put`."""
        self._put(READINGS, fingerprint, readings)

    def _get(self, table: tuple[str, str], fingerprint: str, prompts: Sequence[bytes]) -> dict[bytes, bytes]:
        (name, column), rows, damaged = table, {}, 0
        with self._lock, self._errors("read"):
            connection = self._open()
            if connection is None:
                return {}
            for start in range(0, len(prompts), KEYS_PER_QUERY):
                keys = prompts[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(keys))
                rows_there = connection.execute(
                    f"SELECT prompt, {column}, checksum FROM {name} WHERE fingerprint = ? AND prompt IN ({marks})",
                    (fingerprint, *keys),
                )
                for prompt, content, checksum in rows_there:
                    if isinstance(content, bytes) and checksum == _checksum(fingerprint, prompt, content):
                        rows[prompt] = content
                    else:
                        damaged += 1
        if damaged:
            logger.warning(
                "%d %ss in the cache %s are not as they were written (their checksums differ); made anew",
                damaged,
                column,
                self._path,
            )
        return rows

    def _put(self, table: tuple[str, str], fingerprint: str, rows: Mapping[bytes, bytes]) -> None:
        checked = [(fingerprint, prompt, row, _checksum(fingerprint, prompt, row)) for prompt, row in rows.items()]
        with self._lock, self._errors("written to"):
            connection = self._open()
            if connection is not None and self._can_write:
                with connection:
                    connection.executemany(f"INSERT OR REPLACE INTO {table[0]} VALUES (?, ?, ?, ?)", checked)

    def _open(self) -> sqlite3.Connection | None:
        """The connection; None where there is no cache, which is said once."""
        if self._is_open:
            return self._connection
        self._is_open = True
        try:
            self._path = self._path or cache_folder() / "embeddings.sqlite"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self._path)
            _wait_for_lock(self._connection, "PRAGMA journal_mode=WAL")
            for name, column in (EMBEDDINGS, READINGS):
                self._connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {name} (fingerprint TEXT, prompt BLOB, {column} BLOB, checksum BLOB, "
                    "PRIMARY KEY (fingerprint, prompt)) WITHOUT ROWID"
                )
            self._can_write = True
        except (OSError, sqlite3.OperationalError) as error:
            self._open_to_read(error)
        return self._connection

    def _open_to_read(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            if self._path is not None and self._path.is_file():
                self._connection = _connect(self._path, "?mode=ro&immutable=1")
                self._connection.execute(f"SELECT 1 FROM {EMBEDDINGS[0]} LIMIT 1")
                logger.warning(
                    "the embedding cache %s can only be read (%s): what is new is not kept", self._path, error
                )
                return
        except (OSError, sqlite3.OperationalError):
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        where = "no embedding cache" if self._path is None else f"no embedding cache at {self._path}"
        logger.warning(
            "%s (%s): embeddings are not kept; set ROUTERJAX_CACHE to a folder that can be written", where, error
        )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # disk full, locked
            self._can_write = False
            logger.warning(
                "the embedding cache %s cannot be %s (%s): what is new is not kept; ROUTERJAX_CACHE names another",
                self._path,
                what,
                error,
            )
        except sqlite3.DatabaseError as error:
            raise InputError(f"the embedding cache {self._path} is damaged ({error}); remove that file") from error


def _connect(path: Path, options: str = "") -> sqlite3.Connection:
    """A connection for every thread: the cache's lock lets one at a time use it."""
    address = f"file:{urllib.parse.quote(os.fspath(path.absolute()))}{options}"
    return sqlite3.connect(address, timeout=LOCK_SECONDS, check_same_thread=False, uri=True)


def _wait_for_lock(connection: sqlite3.Connection, statement: str) -> None:
    """Execute a statement that SQLite itself does not wait with while another process opens the file, too."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the other bits say why
            if not is_busy or time.monotonic() > end:
                raise
        time.sleep(0.02)


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
