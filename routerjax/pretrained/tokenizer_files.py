"""Tokenizers of pretrained folders, as AutoTokenizer of transformers reads them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from routerjax.config import Truncation
from routerjax.errors import InputError
from routerjax.pretrained.auto_classes import from_pretrained
from routerjax.pretrained.files import find_file, parse_json, read_text_file
from routerjax.pretrained.tokenizer_bounds import require_bounded, tokenizer_steps

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = (TOKENIZER_FILE, "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
TOKENIZER_FILES = (
    *(*VOCABULARIES, "merges.txt", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
"""Files of a tokenizer, as a folder of transformers has them."""
RESOLVED_FILE = "resolved_tokenizer.json"
"""File in which a router keeps the tokenizer that all of these describe, where ``tokenizer.json`` is not it."""
# SHA-256 of the files of a tokenizer that all say the same, so that nobody need be asked: of all-MiniLM-L6-v2's.
AS_THEY_STAND = {
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    TOKENIZER_CONFIG: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
# Texts that a tokenizer.json must read as transformers does, which can do more than such a file holds.
PROBES = ("Two  words, a naïve façade,\n1234 你好 and", " a", "")


class PretrainedTokenizer(NamedTuple):
    """Tokenizer of a folder.

    Attributes:
        files: those of :data:`TOKENIZER_FILES` that the folder holds, and :data:`RESOLVED_FILE`, name -> content.
        truncation: the side from which transformers cuts a longer text.
    """

    files: Mapping[str, bytes]
    truncation: Truncation

    @property
    def tokenizer_json(self) -> bytes:
        """The tokenizer itself, in the format of ``tokenizer.json``."""
        return resolved_tokenizer(self.files)


def resolved_tokenizer(files: Mapping[str, bytes]) -> bytes:
    """The tokenizer that a router runs, of the files that :func:`read_tokenizer` gave."""
    return files.get(RESOLVED_FILE) or files[TOKENIZER_FILE]


def read_tokenizer(folder: Path, *, vocab_size: int, lowercase: bool = False) -> PretrainedTokenizer:
    """Read the tokenizer of a folder as ``AutoTokenizer`` of transformers does, offline and without code of the folder.

    What differs from ``tokenizer.json`` is logged: settings of the other files, and of the class that they name.

    Args:
        folder: that holds its files, and ``config.json``.
        vocab_size: rows of the encoder's token embedding. Tokens that transformers adds beyond them are left out.
        lowercase: lower a text's case before all else, as sentence-transformers' ``do_lower_case`` does.

    Raises:
        InputError: no tokenizer in it, damaged, or none that ``tokenizer.json`` can hold.
    """
    files, truncation = read_tokenizer_files(folder), "right"
    config = files.pop(CONFIG_FILE)
    if {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} != AS_THEY_STAND:
        files, truncation = _as_transformers_reads(folder, files, config, vocab_size)
    if lowercase:
        files = {**files, RESOLVED_FILE: _lowercased(resolved_tokenizer(files))}
    return PretrainedTokenizer(files, truncation)


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read what transformers reads for a tokenizer: those of :data:`TOKENIZER_FILES` that are there, and its config.

    Raises:
        InputError: no tokenizer among them, no ``config.json``, or a file that cannot be read.
    """
    present = [name for name in TOKENIZER_FILES if find_file(folder / name) is not None]
    if not set(present) & set(VOCABULARIES):
        raise InputError(f"{folder} holds no tokenizer: expected {', '.join(VOCABULARIES)}")
    return {name: read_text_file(folder / name) for name in (*present, CONFIG_FILE)}


def parse_tokenizer(tokenizer_json: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a ``tokenizer.json``, which neither pads nor cuts.

    Raises:
        InputError: it is none, or one whose work has no bound; see :func:`require_bounded`.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise InputError(f"{TOKENIZER_FILE} is not a tokenizer: {error}") from error
    require_bounded(json.loads(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_config(files: Mapping[str, bytes]) -> dict[str, object]:
    """Read ``tokenizer_config.json``; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    content = files.get(TOKENIZER_CONFIG)
    return {} if content is None else parse_json(content, dict, TOKENIZER_CONFIG)


def _as_transformers_reads(
    folder: Path, files: Mapping[str, bytes], config: bytes, vocab_size: int
) -> tuple[dict[str, bytes], Truncation]:
    """The files with the tokenizer that transformers makes of them, and the side from which it cuts."""
    try:
        plain = parse_tokenizer(files[TOKENIZER_FILE]) if TOKENIZER_FILE in files else None
        _ = tokenizer_config(files)  # damage is said in our words
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error

    def read(loaded: Any) -> tuple[dict[str, Any], Truncation]:
        if not loaded.is_fast:
            raise InputError(f"{folder}: expected a fast tokenizer, got {type(loaded).__name__}; save it as a fast one")
        missing = set(type(loaded).vocab_files_names.values()) - {TOKENIZER_FILE, *files}
        if plain is None and missing:  # of which the library would make a tokenizer of a few tokens
            raise InputError(f"{folder}: {type(loaded).__name__} of transformers needs {', '.join(sorted(missing))}")
        tokenizer = json.loads(loaded.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        # The library adds the special tokens of a class that the vocabulary lacks; the encoder has no row for them.
        known = {} if plain is None else plain.get_vocab()
        beyond = {
            token["content"]
            for token in tokenizer["added_tokens"]
            if token["id"] >= vocab_size and token["content"] not in known
        }
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in beyond]
        probes = [*PROBES, "".join(token for token in loaded.all_special_tokens if token not in beyond)]
        reads = [encoding.ids for encoding in tokenizers.Tokenizer.from_str(json.dumps(tokenizer)).encode_batch(probes)]
        if loaded(probes, verbose=False)["input_ids"] != reads:
            raise InputError(
                f"{folder}: {type(loaded).__name__} of transformers does to a text what {TOKENIZER_FILE} cannot hold, "
                "such as split_special_tokens; save it again as PreTrainedTokenizerFast"
            )
        return tokenizer, loaded.truncation_side

    tokenizer, truncation = from_pretrained("AutoTokenizer", {**files, CONFIG_FILE: config}, folder, read)
    content = json.dumps(tokenizer, ensure_ascii=False).encode()
    if plain is None:
        return {**files, TOKENIZER_FILE: content}, truncation
    stated = json.loads(plain.to_str())
    changed = [part for part, value in tokenizer.items() if part != "decoder" and value != stated[part]]
    if not changed:
        return dict(files), truncation
    logger.info("%s: transformers reads %s with another %s", folder, TOKENIZER_FILE, ", ".join(changed))
    return {**files, RESOLVED_FILE: content}, truncation


def _lowercased(tokenizer_json: bytes) -> bytes:
    """A ``tokenizer.json`` that lowers a text's case before all else."""
    tokenizer = json.loads(tokenizer_json)
    steps = tokenizer_steps(tokenizer, "normalizer")
    if any(step.get("type") == "Lowercase" for step in steps):
        return tokenizer_json
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
    return json.dumps(tokenizer, ensure_ascii=False).encode()
