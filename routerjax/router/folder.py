"""A router on disk: ``router.json`` says what it is, ``router.safetensors`` holds its variables."""

from __future__ import annotations

import hashlib
import json
import os
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
from routerjax.losses import outcome_model
from routerjax.pretrained import file_sha256, find_file, read_bytes, read_tokenizer_files, require_sizes, tensor_bytes
from routerjax.router.reader import TextReader, encoder_sizes
from routerjax.router.router import Router
from routerjax.typing import Array

FORMAT = "routerjax-router-1"
DESCRIPTION_FILE = "router.json"
TENSOR_FILE = "router.safetensors"
TOKENIZER_FOLDER = "tokenizer"


def save_router(router: Router, path: str | os.PathLike[str]) -> None:
    """Write a router as a new folder, whole or not at all: ``router.json``, ``router.safetensors``, and ``tokenizer/``
    of a router that reads text itself.

    Raises:
        InputError: the folder exists.
    """
    flat = cast("dict[str, Array]", flax.traverse_util.flatten_dict(dict(router.variables), sep="/"))
    content = tensor_bytes(flat, {"format": FORMAT})
    description = {
        "format": FORMAT,
        "family": router.family,
        "attributes": dict(router.attributes),
        "loss": router.loss,
        "readout": router.readout,
        "models": list(router.models),
        "strong": router.strong,
        "weak": router.weak,
        "threshold": router.threshold_as_json,
        "features": router.features.to_dict(),
        "reader": None if router.reader is None else router.reader.to_dict(),
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "provenance": dict(router.provenance),
    }
    with new_directory(path) as folder:
        (folder / TENSOR_FILE).write_bytes(content)
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
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
        InputError: no such folder, another format, or files damaged or not belonging together.
    """
    folder = Path(path)
    if find_file(folder / DESCRIPTION_FILE) is None:
        raise InputError(f"{folder} is not a router folder: no {DESCRIPTION_FILE} in it")
    try:
        description = json.loads(read_bytes(folder / DESCRIPTION_FILE))
        if description["format"] != FORMAT:
            raise InputError(f"{folder}: expected format {FORMAT}, got {description['format']!r}; update routerjax")
        fields = {name: description[name] for name in ("family", "attributes", "loss", "readout", "strong", "weak")}
        threshold = None if description["threshold"] is None else float(description["threshold"])
        expected_hash, names = description["tensors_sha256"], tuple(description["models"])
        features, provenance = FeatureSpec.from_dict(description["features"]), description["provenance"]
        reader = _read_reader(description.get("reader"), folder / TOKENIZER_FOLDER)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / DESCRIPTION_FILE} is damaged: {type(error).__name__} {error}") from error
    if find_file(folder / TENSOR_FILE) is None:
        raise InputError(f"{folder} is incomplete: no {TENSOR_FILE} in it")
    if file_sha256(folder / TENSOR_FILE) != expected_hash:
        size = (folder / TENSOR_FILE).stat().st_size
        raise InputError(
            f"{folder / TENSOR_FILE} is not the file that {DESCRIPTION_FILE} describes ({size} bytes, its "
            "sha256 differs): truncated or exchanged; copy the folder again"
        )
    try:
        flat = safetensors.numpy.load_file(folder / TENSOR_FILE)
    except safetensors.SafetensorError as error:
        raise InputError(f"{folder / TENSOR_FILE} is damaged: {error}") from error
    variables = flax.traverse_util.unflatten_dict({name: jnp.asarray(leaf) for name, leaf in flat.items()}, sep="/")
    router = Router(
        **fields,
        models=names,
        threshold=threshold,
        features=features,
        variables=variables,
        provenance=provenance,
        reader=reader,
        encoder_source=encoder,
    )
    _require_fit(router, folder)
    return router


def router_folder(path: str | os.PathLike[str]) -> Path:
    """The router folder that ``path`` names: itself, or the ``router`` in a run's output folder."""
    path = Path(path)
    inner = path / "router"
    is_run = not (path / DESCRIPTION_FILE).exists() and (inner / DESCRIPTION_FILE).exists()
    return inner if is_run else path


def _read_reader(described: object, folder: Path) -> TextReader | None:
    if described is None:
        return None
    if not folder.is_dir():
        raise InputError(f"the router is incomplete: no folder {folder}")
    try:
        return TextReader.from_dict(described, read_tokenizer_files(folder, root=folder.parent))
    except InputError as error:
        raise InputError(f"{folder.parent}: {error}") from error


def _require_fit(router: Router, folder: Path) -> None:
    """Refuse tensors that the module cannot take, before anyone scores with them."""
    if router.reader is None:
        query = {"embedding": jax.ShapeDtypeStruct((1, router.features.width), np.float32)}
    else:
        numbers = sum(leaf.size for leaf in jax.tree.leaves(router.variables))
        require_sizes(encoder_sizes(router.reader.encoder), numbers, folder / DESCRIPTION_FILE)
        _ = router.tokenizer  # refused here if it is another
        query = {name: jax.ShapeDtypeStruct((1, 2), np.int32) for name in ("token_ids", "attention_mask")}
    query["prompt_id"] = jax.ShapeDtypeStruct((1, 2), np.uint32)
    try:
        scores = jax.eval_shape(router.module.apply, router.variables, query)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, flax.errors.FlaxError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{folder}: the tensors do not fit the module {router.family}: {reason}") from error
    extra = {"none": 0, "parameter": 1, "column": 1, "labels": 1}[outcome_model(router.loss).tie]
    if cast(jax.ShapeDtypeStruct, scores).shape != (1, len(router.models) + extra):
        raise InputError(
            f"{folder}: expected {len(router.models) + extra} scores ({router.loss} of {len(router.models)} models), "
            f"got shape {scores.shape}"
        )
