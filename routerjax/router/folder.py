"""A router on disk: ``router.json`` says what it is, ``router.safetensors`` holds its variables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
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
from routerjax.features import FeatureSpec
from routerjax.likelihoods import COLLECTION, read_likelihood
from routerjax.pretrained import file_sha256, find_file, read_tokenizer_files, require_sizes, tensor_bytes
from routerjax.router.description import FILE as DESCRIPTION_FILE
from routerjax.router.description import RouterDescription, describe_router, read_description, write_description
from routerjax.router.reader import TextReader
from routerjax.router.router import Router
from routerjax.typing import Array, Variables

TENSOR_FILE = "router.safetensors"
TOKENIZER_FOLDER = "tokenizer"
# Collections of variables: what is computed with them must be floats in all but the last.
COLLECTIONS = ("params", COLLECTION, "calibration", "memory")


def save_router(router: Router, path: str | os.PathLike[str]) -> None:
    """Write a router as a new folder, whole or not at all: ``router.json``, ``router.safetensors``, and ``tokenizer/``
    of a router that reads text itself.

    Raises:
        InputError: the folder exists, or the provenance is no JSON.
    """
    flat = cast("dict[str, Array]", flax.traverse_util.flatten_dict(dict(router.variables), sep="/"))
    content = tensor_bytes(flat)
    description = describe_router(router, tensors_sha256=hashlib.sha256(content).hexdigest())
    with new_directory(path) as folder:
        (folder / TENSOR_FILE).write_bytes(content)
        write_description(description, folder)
        if router.reader is not None:
            (folder / TOKENIZER_FOLDER).mkdir()
            for name, file in router.reader.files.items():
                (folder / TOKENIZER_FOLDER / name).write_bytes(file)


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
    folder = Path(path)
    description = read_description(folder)
    variables = _read_variables(folder, description.tensors_sha256)
    threshold = description.threshold
    try:
        router = Router(
            family=description.family,
            attributes=description.attributes,
            models=description.models,
            strong=description.strong,
            weak=description.weak,
            likelihood=read_likelihood(description.likelihood),
            threshold=None if threshold is None else float(threshold),
            features=FeatureSpec.from_dict(description.features),
            reader=_read_reader(description, folder / TOKENIZER_FOLDER),
            variables=variables,
            provenance=description.provenance,
            encoder_source=encoder,
        )
        _require_fit(router)
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
        collection, is_float = name.partition("/")[0], jnp.issubdtype(leaf.dtype, jnp.floating)
        if collection not in COLLECTIONS or (collection != "memory" and not is_float):
            raise InputError(
                f"{path}: expected floats below {', '.join(COLLECTIONS[:-1])}, or arrays below memory, got {name!r} of "
                f"{leaf.dtype}"
            )
        if is_float and not np.isfinite(leaf).all():
            raise InputError(f"{path}: {name} must be finite, got NaN or infinity: the training diverged; train again")
    return flax.traverse_util.unflatten_dict({name: jnp.asarray(leaf) for name, leaf in flat.items()}, sep="/")


def _read_reader(description: RouterDescription, folder: Path) -> TextReader | None:
    """Read the text reader, with the files of the tokenizer that the description names, unchanged."""
    if description.reader is None:
        return None
    if not folder.is_dir():
        raise InputError(f"the router is incomplete: no folder {folder}")
    files, hashes = read_tokenizer_files(folder, root=folder.parent), description.tokenizer_sha256
    for name, sha256 in hashes.items():
        if name not in files:
            raise InputError(f"the router is incomplete: no file {folder / name} of a tokenizer")
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise InputError(
                f"{folder / name} is not the file that {DESCRIPTION_FILE} describes: copy the folder again"
            )
    files = {name: files[name] for name in hashes}
    return TextReader.from_dict(description.reader, files)


def _require_fit(router: Router) -> None:
    """Refuse tensors that the module cannot take, before anyone scores with them."""
    if router.reader is None:
        query = {"embedding": jax.ShapeDtypeStruct((1, router.features.width), np.float32)}
    else:
        numbers = sum(leaf.size for leaf in jax.tree.leaves(router.variables))
        require_sizes(vars(router.reader.encoder), numbers, DESCRIPTION_FILE)
        _ = router.tokenizer  # refused here if it is another
        query = {name: jax.ShapeDtypeStruct((1, 2), np.int32) for name in ("token_ids", "attention_mask")}
    query["prompt_id"] = jax.ShapeDtypeStruct((1, 2), np.uint32)
    try:
        scores = jax.eval_shape(router.module.apply, router.variables, query)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, flax.errors.FlaxError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the tensors do not fit the module {router.family}: {reason}") from error
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


def _shapes(collection: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in collection.items()}
