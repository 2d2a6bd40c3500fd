"""What a run was made from, so that it can be repeated, and resumed as the same run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from routerjax.atomic import atomic_file
from routerjax.config import ExperimentConfig, FeatureConfig
from routerjax.errors import InputError
from routerjax.features import is_endpoint
from routerjax.pretrained import file_sha256, locate, weights_sha256

CONFIG_FILE = "config.json"


def require_run(output: Path) -> None:
    """Raise InputError unless a folder holds a run, finished or interrupted."""
    if not (output / CONFIG_FILE).is_file():
        raise InputError(f"nothing to resume: {output} holds no run (no {CONFIG_FILE}); run without --resume")


def require_same_run(provenance: Mapping[str, object], output: Path) -> None:
    """A resumed run is the same run: refuse another configuration or other data before anything is read or encoded."""
    path = output / CONFIG_FILE
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        old = {**written["config"], **written["data_sha256"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot resume {output}: {path} is damaged; train into another folder") from error
    given = json.loads(json.dumps(provenance))
    new = {**given["config"], **given["data_sha256"]}
    different = [name for name in new if new[name] != old.get(name)]
    if different:
        raise InputError(
            f"cannot resume {output}: the run differs in {', '.join(different)} (see {path}); resume it as it was, or "
            "train into another folder"
        )


def describe_run(config: ExperimentConfig) -> dict[str, object]:
    """What is needed to repeat a run: the configuration, the code, the versions and the data's hashes.

    Data is also the encoder, wherever it is found: its tokenizer and its weights, those of shards under the one name
    ``model.safetensors``. An endpoint shows neither.

    Raises:
        InputError: the encoder is found nowhere, or its weights are incomplete.
    """
    versions = {name: importlib.metadata.version(name) for name in ("routerjax", "jax", "flax", "optax", "numpy")}
    root = Path(config.data.root)
    given = () if config.features.embeddings is None else (config.features.embeddings,)
    files = [root / name for name in (*(source.path for source in config.data.battles), *given)]
    for source in config.data.golden:
        files += sorted((root / source.root / source.benchmark).rglob("*.*"))
    found = {os.path.relpath(file, root): file_sha256(file) for file in files if file.is_file()}
    return {
        "config": dataclasses.asdict(config),
        "git_commit": _git_commit(),
        "versions": versions,
        "data_sha256": {**found, **_encoder_sha256(config.features, root)},
    }


def _encoder_sha256(features: FeatureConfig, root: Path) -> dict[str, str]:
    """Of the encoder that makes a run's features or is trained by it, if any."""
    if features.embeddings is not None or is_endpoint(features.encoder):
        return {}
    folder = locate(features.encoder)
    name = os.path.relpath(folder, root) if Path(features.encoder).is_dir() else features.encoder
    try:
        found = {f"{name}/model.safetensors": weights_sha256(folder)}
    except FileNotFoundError as error:
        raise InputError(f"{folder} is incomplete: no {error.filename}; get the encoder again") from error
    tokenizer = folder / "tokenizer.json"  # without one the encoder is refused when it is loaded
    return {**found, f"{name}/tokenizer.json": file_sha256(tokenizer)} if tokenizer.is_file() else found


def _git_commit() -> str | None:
    """The commit of the code that runs, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() or None if finished.returncode == 0 else None


def write_json(path: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
