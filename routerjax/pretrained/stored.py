"""Tensors on disk that are read when, and as far as, they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from routerjax.errors import InputError

Index = tuple[slice, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, with the indexing of an array: ``tensor[index]`` reads that part, and no other.

    It is an array of one published tensor, or of one of each layer, stacked. Devices thus read their own part of the
    weights, and the host never holds them all.

    Attributes:
        places: file and published name: one, or that of each layer.
        shape: as we hold it.
        dtype: that it is read as.
        is_stacked: if the first axis is that of layers.
        is_transposed: if the published tensors are ``[out, in]`` and ours ``[in, out]``.
    """

    places: tuple[tuple[Path, str], ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    is_stacked: bool
    is_transposed: bool

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    def __getitem__(self, index: Index) -> np.ndarray:
        """Read a part, of slices without steps.

        Raises:
            InputError: the weights are NaN or infinite.
        """
        bounds = [part.indices(size) for part, size in zip(index, self.shape, strict=False)]
        bounds += [(0, size, 1) for size in self.shape[len(bounds) :]]
        layers = range(*bounds[0]) if self.is_stacked else range(1)
        inner = tuple(slice(start, stop) for start, stop, _ in bounds[self.is_stacked :])
        shape = (len(layers),) * self.is_stacked + tuple(part.stop - part.start for part in inner)
        result = np.empty(shape, self.dtype)
        for row, layer in enumerate(layers):
            target = result[row] if self.is_stacked else result
            target[...] = self._read(*self.places[layer], inner)
        return result

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Read all of it."""
        del copy
        whole = self[()]
        return whole if dtype is None else whole.astype(dtype)

    def _read(self, file: Path, name: str, inner: Index) -> np.ndarray:
        with safetensors.safe_open(file, framework="numpy") as tensors:
            part = tensors.get_slice(name)[inner[::-1] if self.is_transposed else inner or ...]
        with np.errstate(over="ignore"):  # a float64 beyond float32, which is found not finite
            part = part.astype(self.dtype, copy=False)
        if not np.isfinite(part).all():
            raise InputError(
                f"{file}: weights must be finite numbers, got NaN or infinity in {name}: the training that made them "
                "diverged, or the file is damaged"
            )
        return part.T if self.is_transposed else part
