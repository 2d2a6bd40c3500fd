"""Token ids on disk, so that a run that starts again does not tokenise again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import tokenizers
import tqdm
from jaxtyping import Int32

from routerjax.atomic import atomic_file
from routerjax.errors import InputError
from routerjax.features.cache import cache_folder
from routerjax.features.cut_report import Reading, report_cut
from routerjax.features.tokens import TextTokenizer, TokenIds
from routerjax.prompts import prompt_sha256, require_texts

# Prompts that the tokenizer's threads take at a time, one record batch of the file.
PROMPTS_PER_PART = 1024
SCHEMA = pa.schema([("token_ids", pa.list_(pa.int32())), ("is_cut", pa.bool_())])


def tokenize_once(
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[Int32[np.ndarray, "length"]]:
    """Token ids of each prompt, without padding, read from an Arrow file where these prompts were tokenised before.

    The file is named after the tokenizer, the version of its library, and the prompts. Whoever has the tokenizer can
    decode the prompts' texts from it: keep it as the prompts themselves are kept. It is mapped into memory rather than
    read, so that more prompts than fit there can be trained on. The tokenizer's threads use all cores. How many prompts
    were cut is logged.

    Args:
        tokenizer: which keeps the first ``max_length`` tokens of a prompt.
        prompts: different texts.
        folder: default ``$ROUTERJAX_CACHE/tokens``, or ``~/.cache/routerjax/tokens``.
        progress: show a progress bar, if it takes more than two seconds.

    Raises:
        InputError: a prompt that is not text, or a damaged file.
        OSError: the file cannot be written.
    """
    require_texts(prompts)
    # A tokenizer's file may be read otherwise by another version of the library.
    name = hashlib.sha256(f"{tokenizer.fingerprint} {tokenizers.__version__}".encode())
    for prompt in prompts:
        name.update(prompt_sha256(prompt))
    path = (cache_folder() / "tokens" if folder is None else Path(folder)) / f"{name.hexdigest()}.arrow"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_file(path) as temporary,
            pa.OSFile(str(temporary), "wb") as stream,
            pa.ipc.new_file(stream, SCHEMA) as writer,
            tqdm.tqdm(total=len(prompts), unit="prompt", desc="tokenising", disable=not progress, delay=2) as bar,
        ):
            for start in range(0, len(prompts), PROMPTS_PER_PART):
                part = prompts[start : start + PROMPTS_PER_PART]
                read = tokenizer.read(part)
                columns = [pa.array(column, field.type) for column, field in zip(read, SCHEMA, strict=True)]
                writer.write_batch(pa.record_batch(columns, SCHEMA))
                bar.update(len(part))
    token_ids, is_cut = _read(path)
    if len(token_ids) != len(prompts):
        raise InputError(f"{path} is damaged ({len(token_ids)} rows of {len(prompts)}); delete it")
    report_cut(list(map(Reading.of, token_ids, is_cut)), tokenizer)
    return token_ids


def _read(path: Path) -> TokenIds:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        column, is_cut = table.column("token_ids"), table.column("is_cut")
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it") from error
    for field in SCHEMA:
        if table.column(field.name).type != field.type:
            got = table.column(field.name).type
            raise InputError(f"{path} is damaged ({field.name} of {got}, expected {field.type}); delete it")
    token_ids: list[Int32[np.ndarray, "length"]] = []
    for chunk in column.chunks:
        token_ids += np.split(chunk.values.to_numpy(), chunk.offsets.to_numpy()[1:-1]) if len(chunk) else []
    return TokenIds(token_ids, is_cut.to_numpy())
