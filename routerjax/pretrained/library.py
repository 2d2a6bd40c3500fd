"""The library transformers, asked what the files of a pretrained folder mean: offline, without code of the folder."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from routerjax.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def from_pretrained(
    kind: Literal["AutoConfig", "AutoTokenizer"], files: Mapping[str, bytes], where: Path, read: Callable[[Any], T]
) -> T:
    """Load files by ``transformers.<kind>.from_pretrained``. The first call takes a second: it imports the library.

    The library sees copies in a folder of their own, so that no link leads it anywhere; it asks no network, runs no
    code of the folder, and prints nothing.

    Args:
        kind: the class of transformers.
        files: all that the library may see, name -> content.
        where: the folder of those files, for messages.
        read: what is wanted of the loaded object.

    Raises:
        InputError: the library, or ``read``, fails on them.
    """
    with tempfile.TemporaryDirectory() as folder, _silent_transformers() as transformers:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            return read(
                getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            )
        except InputError:
            raise
        except BaseException as error:
            # Damaged files raise anything here, and what Rust code panics with is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).replace(folder, str(where)).split())[:300]
            what = {"AutoConfig": "configuration", "AutoTokenizer": "tokenizer"}[kind]
            raise InputError(
                f"{where}: expected a {what} that transformers {transformers.__version__} reads, got "
                f"{type(error).__name__}: {reason}; save it again with {kind}"
            ) from error


class _Forwarding(logging.Handler):
    """Handler that passes the library's warnings on to our logger, as information, each as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            logger.info("transformers: %s", " ".join(record.getMessage().split()))


@contextlib.contextmanager
def _silent_transformers() -> Iterator[ModuleType]:
    """Import transformers without its word on torch, which nothing here needs; its warnings go to our logger."""
    theirs = logging.getLogger("transformers")

    def drop(record: logging.LogRecord) -> bool:
        del record
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.addFilter(drop)
        try:
            import transformers
        finally:
            theirs.removeFilter(drop)
        handlers, propagates = theirs.handlers, theirs.propagate
        theirs.handlers, theirs.propagate = [_Forwarding()], False
        try:
            yield transformers
        finally:
            theirs.handlers, theirs.propagate = handlers, propagates
