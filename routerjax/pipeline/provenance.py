"""Provenance of a run, so that it can be repeated, and resumed as the same run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax

from routerjax.atomic import atomic_file
from routerjax.config import ExperimentConfig, FeatureConfig, by_full_name, identity_of
from routerjax.data import source_revision
from routerjax.errors import InputError
from routerjax.features import is_endpoint
from routerjax.pretrained import ChatTemplate, encoder_sha256, file_sha256, locate
from routerjax.validation import from_json

RUN_FILE = "run.json"

PACKAGES = (
    *("routerjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "tokenizers"),
    "transformers",
)

# Of the environment: what changes how JAX and its libraries compute, and nothing that names a host.
ENVIRONMENT = re.compile(
    "JAX_(?!COORDINATOR).*|XLA_.*|LIBTPU_INIT_ARGS|CUDA_VISIBLE_DEVICES|TPU_VISIBLE_(CHIPS|DEVICES)|NCCL_.*|"
    "NVIDIA_TF32_OVERRIDE|OMP_NUM_THREADS|HF_(HUB|DATASETS)_OFFLINE"
)

JAX_SETTINGS = (
    *("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_numpy_dtype_promotion"),
    "jax_threefry_partitionable",
)


def require_run(output: Path) -> None:
    """Raise InputError unless a folder holds a run, finished or interrupted."""
    if not (output / RUN_FILE).is_file():
        raise InputError(f"nothing to resume: {output} holds no run (no {RUN_FILE}); run without --resume")


def require_same_run(config: ExperimentConfig, provenance: Mapping[str, object], output: Path) -> None:
    """Refuse to resume another run, before anything is read or encoded.

    A run is the same if the settings that identify it (:func:`routerjax.config.identity_of`) and the content of its
    data and its encoder are; where these lie does not matter.

    Args:
        config: of the run that is to go on.
        provenance: what :func:`describe_run` says of it.
        output: its folder.

    Raises:
        InputError: the folder's run differs, or its ``run.json`` is damaged.
    """
    path = output / RUN_FILE
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        settings, data = written["config"], dict(written["data_sha256"])
        if not (isinstance(written["starts"], list) and isinstance(written["run_id"], str)):
            raise TypeError("not as it was written")
        new = _settings(config)
        old = {name: settings[section].get(field) for name in new for section, field in [name.split(".")]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    return by_full_name(identity)


def describe_run(config: ExperimentConfig) -> dict[str, object]:
    """Describe what is needed to repeat a run: the configuration, the code, the versions and the data's hashes.

    A Hugging Face data set has its revision. Data is also the encoder, wherever it is found, with all that decides its
    embeddings (see :func:`routerjax.pretrained.encoder_sha256`). An endpoint shows none of it.

    Raises:
        InputError: the encoder or a data set is found nowhere, or the encoder's files are incomplete.
    """
    return {
        "config": dataclasses.asdict(config),
        "git_commit": git_commit(Path(__file__).resolve().parents[1]),
        "versions": _versions(),
        "data_sha256": {**_data_sha256(config), **_encoder_sha256(config.features)},
    }


def describe_start() -> dict[str, object]:
    """Describe a start of a run: its command line, environment and hardware; no host that the command does not name."""
    devices = jax.devices()
    return {
        "command": sys.argv,
        "git_commit": git_commit(Path(__file__).resolve().parents[1]),
        "versions": _versions(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if ENVIRONMENT.fullmatch(name)},
        "jax": {name: getattr(jax.config, name) for name in JAX_SETTINGS},
        "hardware": {
            "devices": len(devices),
            "device_kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "processes": jax.process_count(),
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**versions, "python": platform.python_version()}


def write_run(output: Path, provenance: Mapping[str, object], *, resume: bool) -> None:
    """Write ``run.json``: what is needed to repeat a run, each of its ``starts``, and a ``run_id``, drawn at random.

    Its ``config`` with the seeds, and the hashes of its data, are what the run is; they stay as the first start wrote
    them.

    Args:
        output: folder of the run.
        provenance: see :func:`describe_run`.
        resume: add a start to those that the file has; one that went on to the end of an epoch.
    """
    new = {**provenance, "run_id": uuid.uuid4().hex, "starts": []}
    run = read_run(output) if resume else new
    write_json(output / RUN_FILE, {**run, "starts": [*run["starts"], describe_start()]})


def read_run(output: Path) -> dict[str, Any]:
    """Read what :func:`write_run` wrote."""
    return json.loads((output / RUN_FILE).read_text(encoding="utf-8"))


def read_template(output: Path) -> ChatTemplate:
    """Read what each prompt of a run is put into, as its first start rendered it.

    Raises:
        InputError: it is not there as it was written.
    """
    where = f"cannot resume {output}: {output / RUN_FILE}: template"
    return from_json(read_run(output).get("template"), ChatTemplate, where)


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
