"""A router on disk: ``router.json`` says what it is, ``router.safetensors`` holds its variables."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import flax.errors
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from routerjax.atomic import new_directory
from routerjax.errors import InputError
from routerjax.families import find_family
from routerjax.features import read_featurizer
from routerjax.likelihoods import COLLECTION, read_likelihood
from routerjax.policies import read_policy
from routerjax.pretrained import file_sha256, find_file, read_bytes, tensor_bytes
from routerjax.router.description import FILE as DESCRIPTION_FILE
from routerjax.router.description import RouterDescription, describe_router, read_description, write_description
from routerjax.router.router import Router
from routerjax.scoring import mode
from routerjax.typing import Array, Variables

logger = logging.getLogger(__name__)

TENSOR_FILE = "router.safetensors"
FEATURIZER_FOLDER = "featurizer"
# Collections that are learned, and so are floats; a module may have others, of any kind of numbers.
LEARNED = ("params", COLLECTION, "calibration")


def save_router(router: Router, path: str | os.PathLike[str]) -> None:
    """Write a router as a new folder, whole or not at all: ``router.json``, ``router.safetensors``, and ``featurizer/``
    with the files of its featurizer, if it has any.

    Raises:
        InputError: the folder exists, the provenance is no JSON, or the module is of no registered family.
    """
    flat = cast("dict[str, Array]", flax.traverse_util.flatten_dict(dict(router.variables), sep="/"))
    content = tensor_bytes(flat)
    description = describe_router(router, tensors_sha256=hashlib.sha256(content).hexdigest())
    with new_directory(path) as folder:
        (folder / TENSOR_FILE).write_bytes(content)
        write_description(description, folder)
        files = router.featurizer.files
        if files:
            (folder / FEATURIZER_FOLDER).mkdir()
        for name, file in files.items():
            (folder / FEATURIZER_FOLDER / name).write_bytes(file)


def load_router(path: str | os.PathLike[str], *, encoder: str | None = None) -> Router:
    """Read a router folder.

    Args:
        path: a folder that :func:`save_router` wrote.
        encoder: a local folder (or hub name) to take the encoder from instead of the recorded one, which must be the
            same encoder: its fingerprint is checked when it is first used.

    Raises:
        InputError: no such folder, another format, changed since it was written, or files damaged or not belonging
            together.
    """
    router = _read(Path(path), encoder)
    return dataclasses.replace(router, variables=jax.tree.map(jnp.asarray, router.variables))


def require_router(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless a router folder can be loaded; its tensors stay on the host."""
    _read(Path(path), None)


def _read(folder: Path, encoder: str | None) -> Router:
    """The router of a folder, its tensors on the host."""
    description = read_description(folder)
    variables = _read_variables(folder, description.tensors_sha256)
    try:
        featurizer = read_featurizer(description.featurizer, _read_files(description, folder / FEATURIZER_FOLDER))
        featurizer.require_sizes(sum(leaf.size for leaf in jax.tree.leaves(variables)), DESCRIPTION_FILE)
        likelihood = read_likelihood(description.likelihood)
        module = find_family(description.family).make_module(
            num_outputs=len(likelihood.output_names(description.models)),
            attributes=description.attributes,
            featurizer=featurizer,
        )
        router = Router(
            module=module,
            featurizer=featurizer if encoder is None else featurizer.at(encoder),
            models=description.models,
            policy=read_policy(description.policy),
            variables=variables,
            likelihood=likelihood,
            provenance=description.provenance,
        )
        _require_fit(router, description.family)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return router


def router_folder(path: str | os.PathLike[str]) -> Path:
    """The router folder that ``path`` names: itself, or the ``router`` in a run's output folder."""
    path = Path(path)
    inner = path / "router"
    is_run = not (path / DESCRIPTION_FILE).exists() and (inner / DESCRIPTION_FILE).exists()
    return inner if is_run else path


def _read_variables(folder: Path, sha256: str) -> Variables:
    path = folder / TENSOR_FILE
    if find_file(path) is None:
        raise InputError(f"{folder} is incomplete: no {TENSOR_FILE} in it")
    if file_sha256(path) != sha256:
        raise InputError(
            f"{path} is not the file that {DESCRIPTION_FILE} describes ({path.stat().st_size} bytes, its sha256 "
            "differs): truncated or exchanged; copy the folder again"
        )
    try:
        flat = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError) as error:  # the latter for unknown types
        raise InputError(f"{path} is damaged: {error}") from error
    for name, leaf in flat.items():
        (collection, slash, _), is_float = name.partition("/"), jnp.issubdtype(leaf.dtype, jnp.floating)
        if not slash or (collection in LEARNED and not is_float):
            raise InputError(
                f"{path}: expected floats below {', '.join(LEARNED)}, or arrays below another collection, got {name!r} "
                f"of {leaf.dtype}"
            )
        if is_float and not np.isfinite(leaf).all():
            raise InputError(f"{path}: {name} must be finite, got NaN or infinity: the training diverged; train again")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _read_files(description: RouterDescription, folder: Path) -> dict[str, bytes]:
    """Read the featurizer's files that the description names, unchanged."""
    hashes = description.files_sha256
    if hashes and not folder.is_dir():
        raise InputError(f"the router is incomplete: no folder {folder}")
    files = {}
    for name, sha256 in hashes.items():
        if find_file(folder / name, folder=folder.parent) is None:
            raise InputError(f"the router is incomplete: no file {folder / name} of its featurizer")
        files[name] = read_bytes(folder / name, folder=folder.parent)
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise InputError(
                f"{folder / name} is not the file that {DESCRIPTION_FILE} describes: copy the folder again"
            )
    return files


def _require_fit(router: Router, family: str) -> None:
    """Refuse tensors that the module cannot take, before anyone scores with them."""
    query = {**router.featurizer.example(), "prompt_id": jax.ShapeDtypeStruct((1, 2), np.uint32)}
    apply = functools.partial(router.module.apply, **mode(router.module, deterministic=True))
    try:
        scores = jax.eval_shape(apply, router.variables, query)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, flax.errors.FlaxError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the tensors do not fit the module {family}: {reason}") from error
    for name in sorted({*router.variables} - {*LEARNED}):
        rest = {key: leaves for key, leaves in router.variables.items() if key != name}
        if _runs(apply, rest, query):
            raise InputError(f"expected no variables that {family} does not have, got the collection {name!r}")
    likelihood, outputs = router.likelihood, len(router.likelihood.output_names(router.models))
    if cast(jax.ShapeDtypeStruct, scores).shape != (1, outputs):
        raise InputError(
            f"expected {outputs} scores ({likelihood.name} of {len(router.models)} models), got shape {scores.shape}"
        )
    if _shapes(router.variables.get(COLLECTION, {})) != _shapes(likelihood.initial_params()):
        raise InputError(
            f"expected the {likelihood.name} parameters {_shapes(likelihood.initial_params())}, got "
            f"{_shapes(router.variables.get(COLLECTION, {}))}"
        )
    calibration = _shapes(router.variables.get("calibration", {}))
    knots = calibration.get("knots", ())
    forms = ({}, {"slope": (), "intercept": ()}, {"knots": knots, "values": knots} if len(knots) == 1 else {})
    if calibration not in forms:
        raise InputError(
            f"a calibration is a slope and an intercept, or knots and as many values, got the shapes {calibration}"
        )


def _runs(apply: Callable[..., object], variables: Variables, query: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    try:
        jax.eval_shape(apply, variables, query)
    except (ValueError, TypeError, KeyError, flax.errors.FlaxError):
        return False
    return True


def _shapes(collection: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in collection.items()}


def warn_of_losses(stored: Router, router: Router) -> None:
    """Log what a router has in its folder and does not keep for another pair, or under another calibration."""
    lost = ["threshold"] if stored.threshold is not None and router.threshold is None else []
    if "calibration" in stored.variables and "calibration" not in router.variables:
        lost.append("calibration")
    if not stored.has_pair and router.has_pair:
        lost.append(f"policy {stored.policy.name}")
    if lost:
        is_same = stored.has_pair and (stored.strong, stored.weak) == (router.strong, router.weak)
        pair = f"for {stored.strong} or {stored.weak}" if stored.has_pair else f"among {len(stored.models)} models"
        when = "before this calibration" if is_same else pair
        logger.warning("left out: the %s of the router, chosen %s", " and ".join(lost), when)
