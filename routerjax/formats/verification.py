"""Comparison of what is written with the router: the precision of both sides, and what happens if they differ."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import jax

from routerjax.errors import VerificationError


def artefact_precision() -> AbstractContextManager[object]:
    """Compute matrix products in full float32 within the context: exported functions, and the scores they must give.

    Accelerators multiply in lower precision (TF32, bfloat16) unless told otherwise, which would differ from the same
    product elsewhere by more than the tolerances.
    """
    return jax.default_matmul_precision("highest")


def reject(folder: Path, path: Path, reason: str) -> NoReturn:
    """Keep ``folder`` as ``PATH.rejected`` (or, where that is taken, ``PATH.rejected.2`` ...) and raise.

    Raises:
        VerificationError: always; says why, and where it is kept.
    """
    names = itertools.chain([f"{path.name}.rejected"], (f"{path.name}.rejected.{n}" for n in itertools.count(2)))
    kept = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    folder.rename(kept)
    raise VerificationError(f"what was written does not do what the router does: {reason}; it is kept as {kept}")
