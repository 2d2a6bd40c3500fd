"""Contamination: evaluation prompts that training has seen; and how near a benchmark lies to a training set."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int, Int32

from routerjax import metrics
from routerjax.errors import InputError

# Similarities alive at a time, 64 MiB of float32: all pairs of 100,000 prompts and 100,000 would be 40 GB.
BLOCK_ELEMENTS = 2**24


class NearestPrompt(NamedTuple):
    """The training prompt of highest cosine similarity to each evaluation prompt.

    Attributes:
        similarity: float32 ``[eval]``, the cosine.
        train_index: int32 ``[eval]``, which one; the first of equals.
    """

    similarity: Float32[np.ndarray, "eval"]
    train_index: Int32[np.ndarray, "eval"]


@dataclass(frozen=True, eq=False)
class Contamination:
    """Evaluation prompts that a training set contains, and the training prompts that they are found by.

    Attributes:
        mask: bool ``[eval]``: contaminated. ``benchmark.select(~mask)`` is what may be evaluated on.
        same_text: bool ``[eval]``: a training prompt has the same text, see :func:`normalized_text`.
        train_index: int32 ``[eval]``, the first training prompt of the same text where there is one, else the nearest.
        similarity: float32 ``[eval]``, cosine of the nearest training prompt.
    """

    mask: Bool[np.ndarray, "eval"]
    same_text: Bool[np.ndarray, "eval"]
    train_index: Int32[np.ndarray, "eval"]
    similarity: Float32[np.ndarray, "eval"]


def normalized_text(text: str) -> str:
    """The text by which two prompts are the same: NFKC, casefold, NFKC, whitespace runs as one space, none at the ends.

    The second NFKC joins what casefolding takes apart. Whitespace is what :meth:`str.split` splits at.

    Example:
        >>> normalized_text("  What\\u2003IS \\n2\\u00b2?") == normalized_text("what is 22?")
        True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def contaminated(
    eval_prompts: Sequence[str],
    train_prompts: Sequence[str],
    eval_embedding: Float[np.ndarray, "eval embed"],
    train_embedding: Float[np.ndarray, "train embed"],
    *,
    threshold: float = 0.95,
) -> Contamination:
    """Find evaluation prompts that have a training prompt of the same text, or of cosine similarity >= threshold.

    Args:
        eval_prompts: texts.
        train_prompts: texts.
        eval_embedding: one row for each of ``eval_prompts``, of any length.
        train_embedding: likewise; both from one encoder.
        threshold: cosine in (0, 1].

    Raises:
        InputError: a threshold outside (0, 1], another number of rows than texts, or as :func:`max_similarity`.

    Example:
        >>> found = contaminated(["Hi  THERE", "b", "c"], ["hi there", "x"], np.eye(3), np.eye(3)[[2, 1]])
        >>> found.mask.tolist(), found.same_text.tolist(), found.train_index.tolist()
        ([True, True, True], [True, False, False], [0, 1, 0])

    Reference:
        RouteLLM (arXiv 2406.18665), section 5; the comparison of texts is ours: it holds whatever the encoder cuts off.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must be a cosine in (0, 1], such as 0.95; got {threshold!r}")
    for name, prompts, embedding in (
        ("eval", eval_prompts, eval_embedding),
        ("train", train_prompts, train_embedding),
    ):
        if len(prompts) != len(embedding):
            raise InputError(
                f"{name}_embedding must have one row for each of the {len(prompts)} texts of {name}_prompts, "
                f"got shape {embedding.shape}"
            )
    nearest = max_similarity(eval_embedding, train_embedding)
    first_of_text: dict[str, int] = {}
    for row, prompt in enumerate(train_prompts):
        first_of_text.setdefault(normalized_text(prompt), row)
    same = np.asarray([first_of_text.get(normalized_text(prompt), -1) for prompt in eval_prompts], np.int32)
    return Contamination(
        mask=(same >= 0) | (nearest.similarity >= threshold),
        same_text=same >= 0,
        train_index=np.where(same >= 0, same, nearest.train_index),
        similarity=nearest.similarity,
    )


def dataset_similarity(
    eval_embedding: Float[np.ndarray, "eval embed"],
    train_embedding: Float[np.ndarray, "train embed"],
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> metrics.Figure:
    """Similarity S(B, D) of a benchmark B to a training set D, with a 95 % bootstrap interval over B.

    ``S(B, D) = mean over q in B of max over q' in D of cos(q, q')``

    Args:
        eval_embedding: of the benchmark's prompts, of any length.
        train_embedding: of the training prompts, from the same encoder.
        num_samples: bootstrap resamples of the benchmark's prompts; the training set stays.
        seed: of the resamples.

    Raises:
        InputError: as :func:`max_similarity`, or ``num_samples`` below 1.

    Example:
        >>> dataset_similarity(np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0]])).value.__round__(4)
        0.8

    Reference:
        RouteLLM (arXiv 2406.18665), section 5.3.
    """
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1; got {num_samples}")
    similarity = max_similarity(eval_embedding, train_embedding).similarity.astype(np.float64)
    rng, count = np.random.default_rng(seed), len(similarity)
    samples = np.asarray([similarity[rng.integers(count, size=count)].mean() for _ in range(num_samples)])
    return metrics.Figure.of(float(similarity.mean()), samples)


def max_similarity(
    eval_embedding: Float[np.ndarray, "eval embed"], train_embedding: Float[np.ndarray, "train embed"]
) -> NearestPrompt:
    """Highest cosine similarity of each evaluation prompt to any training prompt, and to which.

    All pairs are compared, a block of evaluation prompts at a time.

    Args:
        eval_embedding: of any length, in any float type.
        train_embedding: likewise.

    Raises:
        InputError: no rows, unequal widths, or a row that is not finite or all zero.

    Example:
        >>> nearest = max_similarity(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 2.0]]))
        >>> nearest.similarity.round(4).tolist(), nearest.train_index.tolist()
        ([0.800000011920929], [1])
    """
    eval_unit = _unit_rows("eval_embedding", eval_embedding)
    train_unit = _unit_rows("train_embedding", train_embedding)
    if eval_unit.shape[1] != train_unit.shape[1]:
        raise InputError(
            f"eval_embedding and train_embedding must be of one width, got {eval_unit.shape[1]} and "
            f"{train_unit.shape[1]}: use the same encoder for both"
        )
    similarity, index = _nearest(eval_unit, train_unit)
    return NearestPrompt(np.asarray(similarity), np.asarray(index))


def _unit_rows(name: str, embedding: Float[np.ndarray, "rows embed"]) -> Float32[np.ndarray, "rows embed"]:
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise InputError(f"{name} must have shape [prompts, embed], neither of them 0; got {embedding.shape}")
    bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if bad.size:
        raise InputError(f"{name}: row {bad[0]} must be finite ({bad.size} such rows)")
    # Summed in float64, in which no float32 square overflows or vanishes; einsum makes no float64 copy of the rows.
    length: Float64[np.ndarray, "rows"] = np.sqrt(np.einsum("re,re->r", embedding, embedding, dtype=np.float64))
    bad = np.flatnonzero(length == 0)
    if bad.size:
        raise InputError(f"{name}: row {bad[0]} is all zero and has no direction ({bad.size} such rows)")
    unit = np.empty(embedding.shape, np.float32)
    return np.divide(embedding, length[:, None], out=unit, casting="same_kind")


@jax.jit
def _nearest(
    eval_unit: Float[Array, "eval embed"], train_unit: Float[Array, "train embed"]
) -> tuple[Float[Array, "eval"], Int[Array, "eval"]]:
    num_train = train_unit.shape[0]

    def nearest(query: Float[Array, "embed"]) -> tuple[Float[Array, ""], Int[Array, ""]]:
        similarity = jnp.matmul(query, train_unit.T, precision=jax.lax.Precision.HIGHEST)
        best = jnp.max(similarity)
        # Two plain reductions: with XLA's argmax, which carries pairs, the whole takes 1.8 times as long on a CPU.
        return best, jnp.min(jnp.where(similarity == best, jnp.arange(num_train), num_train))

    return jax.lax.map(nearest, eval_unit, batch_size=max(1, BLOCK_ELEMENTS // num_train))
