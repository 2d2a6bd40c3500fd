"""The prompts that an export is compared with its router on, and the precision that both sides compute in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import jax
import numpy as np

from routerjax.data import simulate_arena
from routerjax.errors import InputError
from routerjax.features import Embeddings
from routerjax.router import Router

NUM_GOLDEN = 48


def artefact_precision() -> AbstractContextManager[object]:
    """Compute matrix products in full float32 within the context: exported functions, and the scores they must give.

    Accelerators multiply in lower precision (TF32, bfloat16) unless told otherwise, which would differ from the same
    product elsewhere by more than the tolerances.
    """
    return jax.default_matmul_precision("highest")


def golden_prompts() -> tuple[str, ...]:
    """Prompts of the simulated arena, and one longer than any encoder takes."""
    prompts = simulate_arena(num_prompts=NUM_GOLDEN, num_test_prompts=1, seed=0).preferences.unique_prompts
    return (*prompts, " ".join(prompts))


def golden_query(router: Router, prompts: Sequence[str] | None = None) -> list[str] | Embeddings:
    """Return golden prompts, or random embeddings of length 1 for a router whose text is read elsewhere.

    Raises:
        InputError: prompts are given for a router that takes embeddings.
    """
    if router.featurizer.text_function() is not None:
        return list(golden_prompts() if prompts is None else prompts)
    if prompts is not None:
        raise InputError("golden prompts were given, but this router is exported for embeddings, not text")
    embedding = np.random.default_rng(0).standard_normal((NUM_GOLDEN, router.featurizer.width)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return Embeddings(embedding, router.featurizer.fingerprint)
