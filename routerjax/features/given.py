"""Embeddings that were made elsewhere, with a fingerprint that says how."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
from jaxtyping import Float32, Int

from routerjax.config import Count
from routerjax.errors import InputError
from routerjax.features.cache import EmbeddingCache
from routerjax.features.featurizer import Featurizer, HostQuery, embedding_batches, register_featurizer
from routerjax.tables import ENDINGS, matrix_column, read_table, rows_not_finite

logger = logging.getLogger(__name__)

NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of some prompts.

    Attributes:
        embedding: float32 ``[prompts, embed]``, finite; a .npy file of these is mapped, and must stay as it is.
        fingerprint: names the way they were made; embeddings of different fingerprints are never compared.

    Raises:
        InputError: no rows, not two-dimensional, not finite in float32, or an empty fingerprint.
    """

    embedding: Float32[np.ndarray, "prompts embed"]
    fingerprint: str

    def __post_init__(self) -> None:
        if not self.fingerprint:
            raise InputError("embeddings need a fingerprint: any text that names the model that made them")
        embedding = np.asarray(self.embedding)
        if embedding.ndim != 2 or 0 in embedding.shape or embedding.dtype.kind != "f":
            raise InputError(
                f"embeddings must be floats of shape [prompts, embed], got {embedding.dtype} {embedding.shape}"
            )
        bad = rows_not_finite(embedding)
        if bad.size:
            raise InputError(f"row {bad[0]}: the embedding is not finite in float32 ({bad.size} such rows)")
        embedding = embedding.astype(np.float32, order="C", copy=not isinstance(self.embedding, np.memmap))
        object.__setattr__(self, "embedding", embedding)

    def batches(self) -> Iterator[tuple[Int[np.ndarray, "rows"], HostQuery]]:
        """Yield rows and their query; see :meth:`Featurizer.batches`."""
        return embedding_batches(self.embedding)

    def featurizer(self, source: str) -> GivenFeaturizer:
        """Featurizer of a run that is trained on them, in the order of its prompts."""
        featurizer = GivenFeaturizer(source=source, width=self.embedding.shape[1], fingerprint=self.fingerprint)
        vars(featurizer)["rows"] = self.embedding
        return featurizer


@register_featurizer
@dataclass(frozen=True, kw_only=True)
class GivenFeaturizer(Featurizer):
    """Featurizer of a router of given embeddings, which reads no text: it is scored with :class:`Embeddings`.

    Attributes:
        source: the file that they came from.
        width: of an embedding.
        fingerprint: declared by whoever made them.
        rows: embeddings of the prompts of a run, in the order in which they first appear; a router has none.
    """

    kind = "given"

    source: str
    width: Count
    fingerprint: str
    rows: ClassVar[Float32[np.ndarray, "prompts embed"] | None] = None

    def query(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> HostQuery:
        """The embeddings that were given for these prompts, where the featurizer is that of a run."""
        del cache, progress
        if self.rows is None:
            self.require_text()
        if len(self.rows) != len(prompts):
            raise InputError(
                f"{self.source} holds {len(self.rows)} embeddings, expected {len(prompts)}: one for each different "
                "prompt of the battles, in the order in which the prompts first appear"
            )
        return {"embedding": self.rows}

    def batches(
        self, prompts: Sequence[str], *, cache: EmbeddingCache | None = None
    ) -> Iterator[tuple[Int[np.ndarray, "rows"], HostQuery]]:
        """Yield rows and their query; see :meth:`query`."""
        return embedding_batches(self.query(prompts, cache=cache)["embedding"])

    def for_scoring(self) -> GivenFeaturizer:
        """Copy without the embeddings of the run."""
        return dataclasses.replace(self)

    def require_text(self) -> NoReturn:
        """Raise InputError: there is nothing that reads text."""
        raise InputError(
            f"this router was trained on given embeddings ({self.source}) and cannot read text; pass Embeddings with "
            f"the fingerprint {self.fingerprint}"
        )


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read embeddings from a file.

    Args:
        path: a .npy file ``[prompts, embed]``, or a table (.parquet, .jsonl) with a column ``embedding`` of lists of
            one length. Beside it ``PATH.json`` declares how they were made: ``{"fingerprint": "MODEL AND VERSION"}``.

    Raises:
        InputError: no such file, no fingerprint, or no embeddings in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    if path.suffix not in (".npy", *ENDINGS):
        raise InputError(f"{path}: the name must end in {', '.join(('.npy', *ENDINGS))}, got {path.suffix!r}")
    declared = path.with_name(f"{path.name}.json")
    if not declared.is_file():
        raise InputError(
            f'{path} has no declared fingerprint: write {{"fingerprint": "MODEL AND VERSION"}} to {declared}'
        )
    try:
        fingerprint = json.loads(declared.read_text(encoding="utf-8-sig"))["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{declared} must hold {{"fingerprint": "MODEL AND VERSION"}}') from error
    if not isinstance(fingerprint, str):
        raise InputError(f"{declared}: fingerprint must be text, got {fingerprint!r}")
    try:
        return Embeddings(_npy(path) if path.suffix == ".npy" else _column(path), fingerprint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _npy(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        is_npy = stream.read(len(NPY_MAGIC)) == NPY_MAGIC
    if not is_npy:  # numpy would read a zip archive under this name as well, and speak of pickles
        raise InputError("not a .npy file: numpy.save writes one")
    try:
        # Mapped, not read; a header that declares more than the file holds is refused.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError) as error:
        if "Python objects" in str(error):
            raise InputError("the .npy file holds Python objects, expected floats: array.astype('float32')") from error
        raise InputError(f"not a complete .npy file: {error}") from error
    if array.dtype.kind == "f" and not (array.dtype == np.float32 and array.flags.c_contiguous):
        order = "C" if array.flags.c_contiguous else "Fortran"
        gigabytes = array.size * np.dtype(np.float32).itemsize / 1e9
        message = "%s is %s in %s order: %.2f GB of memory hold it in float32; a file of float32 in C order is mapped"
        logger.info(message, *(path, array.dtype, order, gigabytes))
    return array


def _column(path: Path) -> np.ndarray:
    return matrix_column(read_table(path, columns=["embedding"]), "embedding")
