"""Results of a run of ``routerjax score`` that is not finished, in a file beside its output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from routerjax.atomic import locked, refuse_existing
from routerjax.errors import InputError
from routerjax.tables import STANDARD_OUTPUT

logger = logging.getLogger(__name__)

CHECKSUM_BYTES = 16


def part_path(output: str) -> Path:
    """The file that keeps the results of an unfinished run, beside its output."""
    return Path(output).with_name(f"{Path(output).name}.part")


def require_part(output: str, *, resume: bool) -> None:
    """Refuse to begin where an unfinished run's results are, and to go on where there are none.

    Raises:
        InputError: either.
    """
    if output == STANDARD_OUTPUT:
        if resume:
            raise InputError("--resume is of an output that is a file: give --output")
        return
    path = part_path(output)
    if resume and not path.is_file():
        raise InputError(f"nothing to resume: there is no {path}; run without --resume")
    if not resume and path.exists():
        raise InputError(f"{path} holds the results of an unfinished run: go on with --resume, or remove it")


class ScorePart:
    """Results of the chunks that are finished, each with a checksum, after a line that says what they are of.

    Args:
        stream: open for reading and writing.
        header: bytes before the first chunk.
        rows: of the whole table.
        chunk_rows: of a chunk; the last may have fewer.
        dtype: of a result.
    """

    def __init__(self, stream: BinaryIO, header: bytes, rows: int, chunk_rows: int, dtype: type[np.generic]) -> None:
        self._stream, self._header, self._dtype = stream, header, np.dtype(dtype)
        self._sizes = [min(chunk_rows, rows - start) for start in range(0, rows, chunk_rows)]
        self.chunks = 0

    def append(self, results: np.ndarray) -> None:
        """Keep the results of the next chunk; they are on the disk when this returns."""
        content = results.astype(self._dtype).tobytes()
        self._stream.seek(0, os.SEEK_END)
        self._stream.write(content + self._checksum(self.chunks, content))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.chunks += 1

    def read(self) -> Iterator[np.ndarray]:
        """Read the results of the finished chunks, one after another."""
        self._stream.seek(len(self._header))
        for number in range(self.chunks):
            results = self._next(number)
            if results is None:
                raise OSError(f"{self._stream.name} was changed by another program while it was in use")
            yield results

    def recover(self) -> None:
        """Count the chunks that are there; what follows the last whole one, left by a kill or damaged, is dropped."""
        self._stream.seek(len(self._header))
        end = len(self._header)
        while self.chunks < len(self._sizes) and self._next(self.chunks) is not None:
            self.chunks, end = self.chunks + 1, self._stream.tell()
        dropped = self._stream.seek(0, os.SEEK_END) - end
        if dropped:
            message = "%s: the last %d bytes are not those of whole chunks, whose rows are scored again"
            logger.warning(message, *(self._stream.name, dropped))
        self._stream.truncate(end)

    def _next(self, number: int) -> np.ndarray | None:
        size = self._sizes[number] * self._dtype.itemsize
        content, checksum = self._stream.read(size), self._stream.read(CHECKSUM_BYTES)
        if len(content) < size or checksum != self._checksum(number, content):
            return None
        return np.frombuffer(content, self._dtype)

    def _checksum(self, number: int, content: bytes) -> bytes:
        described = hashlib.sha256(self._header + str(number).encode()).digest()
        return hashlib.blake2b(described + content, digest_size=CHECKSUM_BYTES).digest()


@contextlib.contextmanager
def open_part(
    path: Path | None,
    identity: Mapping[str, object],
    *,
    rows: int,
    chunk_rows: int,
    dtype: type[np.generic],
    resume: bool,
) -> Iterator[ScorePart]:
    """Open the results of a run, to add those that are not there yet.

    Where the body fails, the file stays if a chunk of it is finished, and is said to be there; else it is removed.

    Args:
        path: of the file; None for one without a name, which cannot be resumed.
        identity: what the results follow from, as JSON; that of the file must be the same.
        rows: of the whole table.
        chunk_rows: of a chunk.
        dtype: of a result.
        resume: go on with the file that is there.

    Raises:
        InputError: the file is of another run, or in use.
    """
    header = json.dumps(identity, sort_keys=True).encode() + b"\n"
    if path is None:
        with tempfile.TemporaryFile() as stream:
            yield ScorePart(stream, b"", rows, chunk_rows, dtype)
        return
    if not resume:
        refuse_existing(path)
    with path.open("r+b" if resume else "x+b") as stream, locked(stream.fileno(), path, "scores into it"):
        part = ScorePart(stream, header, rows, chunk_rows, dtype)
        try:
            if resume:
                _require_same(stream.readline(), identity, path)
                part.recover()
            else:
                stream.write(header)
                stream.flush()
            if part.chunks:
                logger.info("%s: %d of %d rows are scored already", path, min(part.chunks * chunk_rows, rows), rows)
            yield part
        except BaseException:
            done = min(part.chunks * chunk_rows, rows)
            if done:
                logger.info("%s keeps the results of %d of %d rows: go on with --resume", path, done, rows)
            elif not resume:
                path.unlink(missing_ok=True)
            raise
        path.unlink()


def _require_same(header: bytes, identity: Mapping[str, object], path: Path) -> None:
    try:
        written = json.loads(header)
        different = sorted(name for name in {*identity, *written} if written.get(name) != identity.get(name))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: remove it, and run without --resume") from error
    if different:
        raise InputError(
            f"{path} is of another run, which differs in {', '.join(different)}: resume it as it was, or remove it and "
            "run without --resume"
        )
