"""Float64 columns at the border of the metrics, checked once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from routerjax.errors import InputError

Column = Float[np.ndarray, "prompts"] | Float[jax.Array, "prompts"]


def real_array(values: object, name: str) -> np.ndarray:
    """Return real numbers as an array, in their own type.

    Numbers written as texts, masked and complex ones are refused: they would be read as other numbers.

    Raises:
        InputError: anything else than numbers or booleans.
    """
    array = np.asarray(values)
    is_real = any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if not is_real or isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{name} must hold real numbers, got {type(values).__name__} of {array.dtype}")
    return array


def check_columns(columns: dict[str, Column]) -> tuple[Float[np.ndarray, "prompts"], ...]:
    """Return the columns as float64: one-dimensional, not empty, of one length, finite.

    Raises:
        InputError: naming the column, and the first row that is not finite, or what it holds instead of numbers.
    """
    checked = {name: real_array(column, name).astype(np.float64) for name, column in columns.items()}
    for name, column in checked.items():
        if column.ndim != 1 or column.size == 0:
            raise InputError(f"{name} must be a non-empty vector, one number for each prompt; got shape {column.shape}")
        bad = np.flatnonzero(~np.isfinite(column))
        if bad.size:
            raise InputError(
                f"{name} must be finite; row {bad[0]} is {column[bad[0]]} ({bad.size} such rows): drop or repair them"
            )
    lengths = {name: column.size for name, column in checked.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in lengths.items())
        raise InputError(f"columns must have one row for each prompt, in the same order; got {listed}")
    return tuple(checked.values())


def check_probabilities(name: str, column: Float[np.ndarray, "prompts"]) -> None:
    """Refuse values outside [0, 1].

    Raises:
        InputError: naming the column and its first row outside.
    """
    bad = np.flatnonzero((column < 0.0) | (column > 1.0))
    if bad.size:
        raise InputError(f"{name} must lie in [0, 1]; row {bad[0]} is {column[bad[0]]} ({bad.size} such rows)")


def quality_gain(
    quality_strong: Float[np.ndarray, "prompts"], quality_weak: Float[np.ndarray, "prompts"]
) -> Float[np.ndarray, "prompts"]:
    """Return ``quality_strong - quality_weak``, whose mean is the denominator of every PGR.

    Raises:
        InputError: the two means are equal (to rounding), so that PGR is undefined.
    """
    gain = quality_strong - quality_weak
    if abs(float(gain.mean())) <= rounding_of_means(quality_strong, quality_weak):
        raise InputError(
            f"the strong and the weak model have the same mean quality ({quality_strong.mean():g}), so no gap can be "
            "recovered: choose another pair"
        )
    return gain


def rounding_of_means(*columns: Float[np.ndarray, "prompts"]) -> float:
    """Difference of means that is rounding alone: equal qualities in another order have means that differ by it."""
    return 1e-12 * max(float(np.abs(column).max()) for column in columns)
