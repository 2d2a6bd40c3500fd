"""Tensors of published checkpoints under our names, and back: one strict table for each architecture."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from routerjax.errors import InputError
from routerjax.pretrained.files import file_sha256, find_file, read_json, refuse_lfs_pointer
from routerjax.pretrained.stored import StoredTensor
from routerjax.typing import Array, PyTree

HARMLESS_LAYERS, HARMLESS_NUMBERS = 48, 10**8

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# What weights may be stored as, in the words of safetensors. All else is quantised: numbers without the scales that
# they are to be multiplied with.
FLOATS = ("F64", "F32", "F16", "BF16")


class Place(NamedTuple):
    """Place of a published tensor: our path, the number of its layer if it is of one, and if layers are stacked."""

    path: str
    layer: int | None
    is_stacked: bool


@dataclass(frozen=True)
class TensorNames:
    """Names of an architecture's tensors.

    Attributes:
        table: published name -> our path; ``{}`` stands for a layer's number in both. Where our path has none, the
            layers' tensors are stacked. A path that ends in ``kernel`` is transposed: published kernels are
            ``[out, in]``, ours ``[in, out]``.
        aliases: (regular expression, replacement) that bring other spellings of published names into the table's.
        ignored: regular expressions of names, in the table's spelling, that are left out on purpose.
        layers_left_out: numbers of the layers that are not taken, on purpose.
    """

    table: Mapping[str, str]
    aliases: Sequence[tuple[str, str]] = field(default=())
    ignored: Sequence[str] = field(default=())
    layers_left_out: Collection[int] = ()

    def place(self, published: str) -> Place | None:
        """Find our place of a published tensor; None for a name that the table has not."""
        for pattern, replacement in self.aliases:
            published = re.sub(pattern, replacement, published)
        if published in self.table:
            return Place(self.table[published], None, False)
        # The layer's number is the only one in a name with {}.
        template, numbers = re.sub(r"\d+", "{}", published, count=1), re.findall(r"\d+", published)
        path = self.table.get(template)
        return None if path is None else Place(path.format(numbers[0]), int(numbers[0]), "{}" not in path)

    def is_ignored(self, published: str) -> bool:
        """Return True for a name that is left out on purpose."""
        place = self.place(published)
        if place is not None and place.layer in self.layers_left_out:
            return True
        for pattern, replacement in self.aliases:
            published = re.sub(pattern, replacement, published)
        return any(re.fullmatch(pattern, published) for pattern in self.ignored)

    def published(self, parameter: str) -> str | None:
        """Published name of our path, with ``{}`` for the layer where layers are stacked; None for one without any."""
        inverse = {path: published for published, path in self.table.items()}
        if parameter in inverse:
            return inverse[parameter]
        template, numbers = re.sub(r"\d+", "{}", parameter, count=1), re.findall(r"\d+", parameter)
        return inverse[template].format(*numbers[:1]) if template in inverse else None


def read_weights(path: Path, names: TensorNames, expected: PyTree, *, initial: PyTree | None = None) -> PyTree:
    """Read safetensors into the form of a module's parameters; see :func:`stored_weights`.

    Returns:
        Nested dictionaries of arrays.
    """
    return jax.tree.map(np.asarray, stored_weights(path, names, expected, initial=initial))


def stored_weights(path: Path, names: TensorNames, expected: PyTree, *, initial: PyTree | None = None) -> PyTree:
    """Find the weights of a module's parameters in safetensors, whose headers alone are read.

    Args:
        path: a file; or a folder with ``model.safetensors``, or with shards and ``model.safetensors.index.json``.
        names: of the architecture.
        expected: the parameters as ``jax.eval_shape`` of the module's ``init`` gives them.
        initial: parameters of layers that the file may lack; where it lacks all of a layer these are taken, which is
            logged.

    Returns:
        Nested dictionaries of :class:`StoredTensor`, of the expected types, and of those of ``initial``.

    Raises:
        InputError: a file is damaged, a tensor is missing (-), extra (+) or of another shape (!), all of which are
            listed; or weights are stored as integers or as floats of fewer than 16 bits.
    """
    leaves = _flatten(expected)
    places: dict[str, dict[int | None, tuple[Path, str]]] = {}
    problems, quantised = [], []
    for file, published, tensors in _tensors(path):
        if names.is_ignored(published):
            continue
        parameter, number, is_stacked = names.place(published) or Place("", None, False)
        layer = number if is_stacked else None
        if parameter not in leaves or layer in places.get(parameter, {}):
            problems.append(f"+ {published}")
            continue
        header, shape = tensors.get_slice(published), leaves[parameter].shape
        if header.get_dtype() not in FLOATS:
            quantised.append(f"{published} ({header.get_dtype()})")
            continue
        expected_shape = shape if layer is None else shape[1:]
        got = tuple(header.get_shape())[:: -1 if parameter.endswith("kernel") else 1]
        if got != expected_shape:
            problems.append(f"! {published}: expected shape {expected_shape}, got {got}")
        places.setdefault(parameter, {})[layer] = (file, published)
    if quantised:
        raise InputError(
            f"{path}: weights must be stored as floats of 16 bits or more, got {quantised[0]}, one of "
            f"{len(quantised)}; quantised weights are not read: save the model in float32 or bfloat16"
        )
    held = {_layer(name) for name in places}
    new = {name: leaf for name, leaf in _flatten(initial or {}).items() if _layer(name) not in held}
    problems += [f"- {name}" for name in leaves if name not in places and name not in new]
    stored: dict[str, StoredTensor | np.ndarray] = {}
    for name, of_layers in places.items():
        leaf, is_stacked = leaves[name], None not in of_layers
        numbers = set(range(leaf.shape[0]) if is_stacked else [None])
        problems += [f"- {name} of layer {number}" for number in sorted(numbers - set(of_layers), key=str)]
        problems += [f"+ {of_layers[number][1]}" for number in sorted(set(of_layers) - numbers, key=str)]
        tensors = tuple(of_layers[number] for number in sorted(of_layers, key=lambda number: number or 0))
        stored[name] = StoredTensor(tensors, leaf.shape, leaf.dtype, is_stacked, name.endswith("kernel"))
    if problems:
        listed = "; ".join(problems[:20]) + ("; ..." if len(problems) > 20 else "")
        raise InputError(f"{path} does not hold the expected tensors (- missing, + extra, ! misshaped): {listed}")
    if new:
        logger.warning("%s gives no %s: initialised at random, to be trained", path, ", ".join(sorted(new)))
    complete = {**stored, **{name: np.asarray(leaf) for name, leaf in new.items()}}
    return flax.traverse_util.unflatten_dict(complete, sep="/")


def publish_weights(params: PyTree, names: TensorNames) -> dict[str, np.ndarray]:
    """The inverse of :func:`read_weights`: tensors under the table's published names, in its layout.

    Raises:
        InputError: a parameter has no published name.
    """
    tensors = {}
    for parameter, leaf in _flatten(params).items():
        published = names.published(parameter)
        if published is None:
            raise InputError(f"the parameter {parameter} has no name in the published format")
        array = np.asarray(leaf)
        for layer, part in enumerate(array if "{}" in published else [array]):
            tensors[published.format(layer)] = _dense(part.T if parameter.endswith("kernel") else part)
    return tensors


def tensor_bytes(tensors: Mapping[str, Array | np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Content of a safetensors file; shape, dtype and bits of each array are kept, as JAX holds it.

    ``safetensors.numpy.load_file`` reads it back (its ``load`` knows no bfloat16).
    """
    arrays = {name: _dense(jnp.asarray(leaf)) for name, leaf in tensors.items()}
    return safetensors.numpy.save(arrays, metadata=dict(metadata or {}) or None)


def _dense(leaf: Array | np.ndarray) -> np.ndarray:
    # safetensors writes memory as it lies; np.ascontiguousarray would make a vector of a scalar.
    return np.asarray(leaf, order="C")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file, or of a folder's files, by their headers alone.

    Raises:
        InputError: no weights there, or a file is damaged.
    """
    return {name: tuple(tensors.get_slice(name).get_shape()) for _, name, tensors in _tensors(path)}


def count_numbers(path: Path) -> int:
    """Numbers that the tensors hold, see :func:`tensor_shapes`."""
    return sum(map(math.prod, tensor_shapes(path).values()))


def require_sizes(sizes: Mapping[str, Any], numbers: int, what: object) -> None:
    """Refuse sizes of an encoder that its tensors cannot have, before anything of these sizes is made.

    Args:
        sizes: attributes of :class:`routerjax.models.BertEncoder`, among them ``width``, ``num_layers``,
            ``vocab_size``, ``max_positions``, ``mlp_dim``.
        numbers: that all of the tensors hold.
        what: the file that says the sizes, as an error names it.

    Raises:
        InputError: rows of that width would be more numbers than the tensors hold.
    """
    width = sizes["width"]
    for name in ("width", "num_layers", "vocab_size", "max_positions", "mlp_dim"):
        # What costs little to describe is left to the comparison of all tensors, which says more.
        harmless = HARMLESS_LAYERS * width if name == "num_layers" else HARMLESS_NUMBERS
        if sizes[name] * width > max(numbers, harmless):
            raise InputError(
                f"{what}: {name} {sizes[name]} at a width of {width} is more than its tensors hold, "
                f"{numbers} numbers; it is not the description of these tensors"
            )


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file or a folder's ``model.safetensors``; of shards, that of all of theirs.

    Raises:
        InputError: no weights there.
    """
    each = [file_sha256(file) for file in weights_files(path)]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    return cast("dict[str, np.ndarray]", flax.traverse_util.flatten_dict(dict(tree), sep="/"))


def _layer(path: str) -> str:
    return path.rpartition("/")[0]


def _tensors(path: Path) -> Iterator[tuple[Path, str, safetensors.safe_open]]:
    """The file of each tensor, the tensor's name, and the open file: of one file, or of all shards."""
    for file in weights_files(path):
        try:
            refuse_lfs_pointer(file)
            with safetensors.safe_open(file, framework="numpy") as tensors:
                for name in list(tensors.keys()):
                    yield file, name, tensors
        except (safetensors.SafetensorError, FileNotFoundError) as error:
            raise InputError(f"{file} is not a complete safetensors file: {error}") from error


def weights_files(path: Path) -> list[Path]:
    """The file, or a folder's ``model.safetensors`` or its shards.

    Raises:
        InputError: the folder has none of these, or not all shards.
    """
    if not path.is_dir():
        return [path]
    if find_file(path / WEIGHTS_FILE) is not None:
        return [path / WEIGHTS_FILE]
    if find_file(path / INDEX_FILE) is None:
        raise InputError(f"{path} holds no {WEIGHTS_FILE} and no {INDEX_FILE}; save it in the safetensors format")
    file_of = read_json(path / INDEX_FILE, dict).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
        raise InputError(f"{path / INDEX_FILE} is damaged: weight_map must map tensors to files, got {file_of!r:.40}")
    shards = [path / shard for shard in sorted(set(file_of.values()))]
    for shard in shards:
        if find_file(shard, folder=path) is None:
            raise InputError(f"{path} is incomplete: no {shard.name}, which its {INDEX_FILE} names; get it again")
    return shards
