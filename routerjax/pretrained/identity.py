"""Identity of a pretrained encoder: hashes of all of its files that decide how a text is read."""

from __future__ import annotations

from pathlib import Path

from routerjax.errors import InputError
from routerjax.pretrained.bert import CONFIG_FILE
from routerjax.pretrained.files import file_sha256, find_file
from routerjax.pretrained.sentence import MODULES_FILE, SETTINGS_FILE, TRANSFORMER_FILES, list_modules
from routerjax.pretrained.tokenizer_files import TOKENIZER_FILES
from routerjax.pretrained.weights import INDEX_FILE, WEIGHTS_FILE, weights_sha256


def encoder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of an encoder's files, by their names below ``folder``.

    These are its weights, configuration and tokenizer, and ``modules.json`` with the configuration and the weights of
    each module that it names; weights in shards go by the name ``model.safetensors``.

    Args:
        folder: as :func:`routerjax.features.load_encoder` or :func:`routerjax.features.load_tokens` takes it.

    Raises:
        InputError: ``modules.json`` is damaged, or weights are missing.
    """
    modules = list_modules(folder) or [("Transformer", folder)]
    files = [folder / MODULES_FILE, folder / SETTINGS_FILE]
    hashes = {}
    for name, path in modules:
        is_transformer = name == "Transformer"
        files += [path / file for file in (CONFIG_FILE, *(TRANSFORMER_FILES + TOKENIZER_FILES) * is_transformer)]
        if is_transformer or any(find_file(path / weights) is not None for weights in (WEIGHTS_FILE, INDEX_FILE)):
            try:
                hashes[(path / WEIGHTS_FILE).relative_to(folder).as_posix()] = weights_sha256(path)
            except FileNotFoundError as error:
                raise InputError(f"{folder} is incomplete: no {error.filename}; get the encoder again") from error
    present = [file for file in files if find_file(file) is not None]
    return hashes | {file.relative_to(folder).as_posix(): file_sha256(file) for file in present}
