"""The interface of formats, the registry of them, and what is the same for all: reading one, and writing one safely."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn, TypeVar

from routerjax.atomic import new_directory, refuse_existing
from routerjax.errors import InputError, VerificationError, choose, nearest
from routerjax.registry import Registry

if TYPE_CHECKING:
    from routerjax.features import Embeddings
    from routerjax.router import Router

logger = logging.getLogger(__name__)


class Format(abc.ABC):
    """A router on disk as another program has it: :class:`ReadableFormat`, :class:`WritableFormat`, or both.

    A dataclass has its fields as options: of :func:`read`, what the files of the format do not say; of :func:`export`,
    how they are written.
    """

    name: ClassVar[str]


class ReadableFormat(Format):
    """A format that routers are imported from."""

    @abc.abstractmethod
    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read a router; see :func:`read`, which adds the name of the format and the source to its provenance."""


class WritableFormat(Format):
    """A format that routers are exported to. Its methods run under full float32 precision of matrix products."""

    compared: ClassVar[str] = "win probabilities"
    """Name of the values that :meth:`verify` compares, in the plural."""

    def unmet(self, router: Router) -> Iterator[str]:
        """Yield each reason why the format cannot hold a router, and what to do about it."""
        del router
        yield from ()

    def require_form(self, router: Router) -> None:
        """Refuse a router that the format cannot hold, before any work.

        Raises:
            InputError: it cannot; lists all of :meth:`unmet` in one line.
        """
        reasons = list(self.unmet(router))
        if reasons:
            raise InputError("; ".join(reasons))

    @abc.abstractmethod
    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the router's files into a folder that is there and empty.

        Args:
            router: to export.
            folder: to write into.
            query: golden prompts; or embeddings, for a router that reads no text here.
        """

    @abc.abstractmethod
    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Load what :meth:`write` wrote and compare it with the router on the same query.

        Returns:
            The largest difference of what is :attr:`compared`, for each thing that was compared.

        Raises:
            VerificationError: a difference is too large; says which.
        """

    @abc.abstractmethod
    def usage(self, router: Router, path: Path) -> str:
        """Tell how to use the folder, in a few words."""


FORMATS: Registry[type[Format]] = Registry(
    "routerjax.formats",
    {
        "stablehlo": "routerjax.formats.stablehlo:StableHlo",
        "onnx": "routerjax.formats.onnx_bundle:Onnx",
        "triton": "routerjax.formats.triton:Triton",
        "vector": "routerjax.formats.vector:Vector",
        "hf": "routerjax.formats.hf:HuggingFace",
        "routellm": "routerjax.formats.routellm:Factorization",
        "routellm-mf": "routerjax.formats.routellm:Factorization",
        "routellm-sw": "routerjax.formats.routellm:SimilarityWeightedRanking",
        "routellm-bert": "routerjax.formats.routellm:Classifier",
        "routellm-causal": "routerjax.formats.routellm_causal:CausalClassifier",
        "p2l": "routerjax.formats.p2l:PromptToLeaderboard",
        "peft": "routerjax.formats.peft:PeftAdapters",
    },
)
"""Formats by name; a package adds its own by an entry point ``routerjax.formats``."""

KindT = TypeVar("KindT", ReadableFormat, WritableFormat)


register_format = FORMATS.register
"""Make a format known by its name, to the command line too; see :meth:`routerjax.registry.Registry.register`."""


def find_format(name: str, kind: type[KindT], options: Mapping[str, object] | None = None) -> KindT:
    """The format of a name.

    Args:
        name: in :data:`FORMATS`.
        kind: :class:`ReadableFormat` or :class:`WritableFormat`.
        options: of the format; text, as a command line gives it, is read by its type.

    Raises:
        InputError: no such format, or not of that kind; lists those that there are. No such option, or a value of
            another type.
    """
    format = choose(name, FORMATS, "the format")
    if not issubclass(format, kind):
        verb = {ReadableFormat: "read", WritableFormat: "written"}[kind]
        able = [other for other, entry in FORMATS.items() if issubclass(entry, kind)]
        raise InputError(f"routers cannot be {verb} in the format {name!r}, but in {', '.join(able)}")
    from routerjax.validation import field_types, typed  # numpy, which the command line does without until now

    types = field_types(format) if dataclasses.is_dataclass(format) else {}
    for option in options or {}:
        if option not in types:
            listed = ", ".join(types) or "no options"
            raise InputError(f"the format {name!r} takes {listed}, got {option!r}{nearest(option, types)}")
    return format(**typed(options or {}, types, name))


def read(
    source: str | os.PathLike[str],
    format: str,
    *,
    strong: str | None = None,
    weak: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Router:
    """Read a router of another program.

    Args:
        source: a file, a folder or a Hugging Face name, as the format has it.
        format: a name in :data:`FORMATS`.
        strong: the strong model; default what the source says, or what its program takes.
        weak: likewise.
        options: of the format: what its files do not say.

    Raises:
        InputError: no such format or option, no such source, a damaged one, or an unknown model.
    """
    router = find_format(format, ReadableFormat, options).read(source, strong=strong, weak=weak)
    provenance = {"imported_from": os.fspath(source), "format": format, **router.provenance}
    return dataclasses.replace(router, provenance=provenance)


def export(
    router: Router,
    path: str | os.PathLike[str],
    format: str,
    *,
    prompts: Sequence[str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Mapping[str, float]:
    """Write a router as a new folder for another program, load it again, and compare before the folder gets its name.

    Args:
        router: what to export.
        path: a new folder.
        format: a name in :data:`FORMATS`.
        prompts: what the folder is compared with the router on; default :func:`golden_prompts`.
        options: of the format.

    Returns:
        The largest differences found, by name; of what, the format says (:attr:`WritableFormat.compared`).

    Raises:
        InputError: the folder exists, the format cannot hold the router, or the router's encoder is not the one it was
            trained with.
        VerificationError: the folder does not do what the router does; it is kept beside ``path``, named in the
            message.
    """
    # Imported here, so that the command line lists formats without starting JAX.
    from routerjax.formats.golden import artefact_precision, golden_query

    path, chosen = Path(path), find_format(format, WritableFormat, options)
    refuse_existing(path)
    chosen.require_form(router)
    with artefact_precision():
        query = golden_query(router, prompts)
        is_text = isinstance(query, Sequence)
        default = f"{len(query)} prompts of its own, a long one among them" if is_text else "embeddings"
        compared = default if prompts is None else "the given prompts"
        logger.info("exporting, and comparing with the router on %s", compared)
        with new_directory(path) as folder:
            chosen.write(router, folder, query)
            try:
                return chosen.verify(router, folder, query)
            except VerificationError as error:
                _reject(folder, path, error)


def _reject(folder: Path, path: Path, error: VerificationError) -> NoReturn:
    """Keep ``folder`` as ``PATH.rejected`` (or, where that is taken, ``PATH.rejected.2`` ...) and raise."""
    names = itertools.chain([f"{path.name}.rejected"], (f"{path.name}.rejected.{n}" for n in itertools.count(2)))
    kept = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    folder.rename(kept)
    raise VerificationError(
        f"what was written does not do what the router does: {error}; it is kept as {kept}"
    ) from error
