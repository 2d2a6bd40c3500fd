"""Provenance of a run, so that it can be repeated, and resumed as the same run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from routerjax.atomic import atomic_file
from routerjax.config import ExperimentConfig, FeatureConfig, identity_of
from routerjax.data import source_revision
from routerjax.errors import InputError
from routerjax.features import is_endpoint
from routerjax.pretrained import encoder_sha256, file_sha256, locate

CONFIG_FILE = "config.json"


def require_run(output: Path) -> None:
    """Raise InputError unless a folder holds a run, finished or interrupted."""
    if not (output / CONFIG_FILE).is_file():
        raise InputError(f"nothing to resume: {output} holds no run (no {CONFIG_FILE}); run without --resume")


def require_same_run(config: ExperimentConfig, provenance: Mapping[str, object], output: Path) -> None:
    """Refuse to resume another run, before anything is read or encoded.

    A run is the same if the settings that identify it (:func:`routerjax.config.identity_of`) and the content of its
    data and its encoder are; where these lie does not matter.

    Args:
        config: of the run that is to go on.
        provenance: what :func:`describe_run` says of it.
        output: its folder.

    Raises:
        InputError: the folder's run differs, or its ``config.json`` is damaged.
    """
    path = output / CONFIG_FILE
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        settings, data = written["config"], dict(written["data_sha256"])
        new = _settings(config)
        old = {name: settings[section].get(field) for name in new for section, field in [name.split(".")]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot resume {output}: {path} is damaged; train into another folder") from error
    new, old = {**new, **cast("dict[str, str]", provenance["data_sha256"])}, {**old, **data}
    different = sorted(name for name in {*new, *old} if new.get(name) != old.get(name))
    if different:
        raise InputError(
            f"cannot resume {output}: the run differs in {', '.join(different)} (see {path}); resume it as it was, or "
            "train into another folder"
        )


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """Settings that identify a run, by their full names. An encoder is known by its content, wherever it lies."""
    identity = identity_of(config)
    if not is_endpoint(config.features.encoder):
        del identity["features"]["encoder"]
    return {f"{section}.{name}": value for section, fields in identity.items() for name, value in fields.items()}


def describe_run(config: ExperimentConfig) -> dict[str, object]:
    """Describe what is needed to repeat a run: the configuration, the code, the versions and the data's hashes.

    A Hugging Face data set has its revision. Data is also the encoder, wherever it is found, with all that decides its
    embeddings (see :func:`routerjax.pretrained.encoder_sha256`). An endpoint shows none of it.

    Raises:
        InputError: the encoder or a data set is found nowhere, or the encoder's files are incomplete.
    """
    versions = {name: importlib.metadata.version(name) for name in ("routerjax", "jax", "flax", "optax", "numpy")}
    return {
        "config": dataclasses.asdict(config),
        "git_commit": git_commit(Path(__file__).resolve().parents[1]),
        "versions": versions,
        "data_sha256": {**_data_sha256(config), **_encoder_sha256(config.features)},
    }


def _data_sha256(config: ExperimentConfig) -> dict[str, str]:
    """Hashes of the files of battles, golden answers and given embeddings; names are those below ``data.root``."""
    root, embeddings = Path(config.data.root), config.features.embeddings
    names = [source.path for source in config.data.battles]
    if embeddings is not None:
        names += [embeddings, f"{embeddings}.json"]  # with the fingerprint that is declared for them
    for source in config.data.golden:
        folder = Path(source.root) / source.benchmark
        names += [str(folder / file.relative_to(root / folder)) for file in sorted((root / folder).rglob("*.*"))]
    hashes = {name: file_sha256(root / name) for name in names if (root / name).is_file()}
    revisions = {
        source.path: source_revision(source.path) for source in config.data.battles if source.path not in hashes
    }
    return hashes | {name: f"revision {revision}" for name, revision in revisions.items() if revision is not None}


def _encoder_sha256(features: FeatureConfig) -> dict[str, str]:
    """Hashes of the encoder that makes a run's features or is trained by it, if any."""
    if features.featurizer or features.embeddings or is_endpoint(features.encoder):
        return {}
    return {f"encoder/{name}": digest for name, digest in encoder_sha256(locate(features.encoder)).items()}


def git_commit(package: Path) -> str | None:
    """Commit of the checkout that a package's folder is part of, marked ``-dirty`` where the folder was changed since.

    None where the package is in no checkout of its own: installed, say, into an environment that lies inside another.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        # Variables such as GIT_DIR, which git sets for hooks, are about another repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        try:
            finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        except OSError:  # no git here
            return None
        return finished.stdout.strip() if finished.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "--", "__init__.py") else None
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--", ".") else commit


def write_json(path: Path, content: object) -> None:
    """Write JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
