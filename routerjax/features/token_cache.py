"""Token ids on disk, so that a run that starts again does not tokenise again."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
import tqdm
from jaxtyping import Int32

from routerjax.atomic import atomic_file
from routerjax.features.cache import cache_folder
from routerjax.features.cut_report import Reading, report_cut
from routerjax.features.tokenizer import TextTokenizer, TokenIds
from routerjax.prompts import prompt_sha256, require_texts

logger = logging.getLogger(__name__)

# Prompts that the tokenizer's threads take at a time, one record batch of the file.
PROMPTS_PER_PART = 1024
SCHEMA = pa.schema([("token_ids", pa.list_(pa.int32())), ("is_cut", pa.bool_())])
CHECKSUM_BYTES = 64


def tokenize_once(
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[Int32[np.ndarray, "length"]]:
    """Token ids of each prompt, without padding, read from a file where these prompts were tokenised before.

    The file is named after the tokenizer, the version of its library, and the prompts: its key. It is an Arrow file,
    followed by a checksum of the key and all that comes before; one that does not fit is made anew, which a warning
    says. Where the file cannot be read or written, a warning says so and the token ids stay in memory. Otherwise they
    are mapped into memory rather than read, so that more prompts than fit there can be trained on. Whoever has the
    tokenizer can decode the prompts' texts from the file: keep it as the prompts themselves are kept. The tokenizer's
    threads use all cores. How many prompts were cut is logged.

    Args:
        tokenizer: which keeps the first ``max_length`` tokens of a prompt.
        prompts: different texts.
        folder: default ``$ROUTERJAX_CACHE/tokens``, or ``~/.cache/routerjax/tokens``.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: a prompt that is not text.
    """
    require_texts(prompts)
    # A tokenizer's file may be read otherwise by another version of the library.
    key = hashlib.sha256(f"{tokenizer.fingerprint} {tokenizers.__version__}".encode())
    for prompt in prompts:
        key.update(prompt_sha256(prompt))
    try:
        path = (cache_folder() / "tokens" if folder is None else Path(folder)) / f"{key.hexdigest()}.tokens"
        read = _read(path, key.digest()) if path.is_file() else None
        if read is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, key.digest(), _parts(tokenizer, prompts, progress=progress))
            read = _read(path, key.digest())
    except OSError as error:  # no home, no folder, a full disk
        logger.warning(
            "no token cache (%s): token ids are not kept; set ROUTERJAX_CACHE to a folder that can be written", error
        )
        read = None
    if read is None:
        parts = list(_parts(tokenizer, prompts, progress=progress))
        is_cut = np.asarray([is_cut for part in parts for is_cut in part.is_cut], bool)
        read = TokenIds([token_ids for part in parts for token_ids in part.token_ids], is_cut)
    report_cut(list(map(Reading.of, *read)), tokenizer)
    return read.token_ids


def _parts(tokenizer: TextTokenizer, prompts: Sequence[str], *, progress: bool) -> Iterator[TokenIds]:
    with tqdm.tqdm(total=len(prompts), unit="prompt", desc="tokenising", disable=not progress, delay=2) as bar:
        for start in range(0, len(prompts), PROMPTS_PER_PART):
            part = prompts[start : start + PROMPTS_PER_PART]
            yield tokenizer.read(part)
            bar.update(len(part))


def _write(path: Path, key: bytes, parts: Iterator[TokenIds]) -> None:
    with atomic_file(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
            for part in parts:
                columns = [pa.array(column, field.type) for column, field in zip(part, SCHEMA, strict=True)]
                writer.write_batch(pa.record_batch(columns, SCHEMA))
        checksum = _checksum(key, pa.memory_map(str(temporary)).read_buffer())
        with temporary.open("ab") as stream:
            stream.write(checksum)


def _read(path: Path, key: bytes) -> TokenIds | None:
    """Read a file; None, with a warning, if it is not as it was written for that key.

    Arrow follows the offsets that a file states: nothing is parsed before the checksum is known to fit.
    """
    content = pa.memory_map(str(path)).read_buffer() if path.stat().st_size > CHECKSUM_BYTES else pa.py_buffer(b"")
    size = max(content.size - CHECKSUM_BYTES, 0)
    if content.slice(size).to_pybytes() != _checksum(key, content.slice(0, size)):
        logger.warning("the token cache %s is not as it was written (its checksum differs); made anew", path)
        return None
    table = pa.ipc.open_file(content.slice(0, size)).read_all()
    token_ids: list[Int32[np.ndarray, "length"]] = []
    for chunk in table.column("token_ids").chunks:
        token_ids += np.split(chunk.values.to_numpy(), chunk.offsets.to_numpy()[1:-1]) if len(chunk) else []
    return TokenIds(token_ids, table.column("is_cut").to_numpy())


def _checksum(key: bytes, content: pa.Buffer) -> bytes:
    """Checksum of a file, its key included: the tokens of other prompts under its name do not fit."""
    return hashlib.blake2b(memoryview(content), key=key, digest_size=CHECKSUM_BYTES).digest()
