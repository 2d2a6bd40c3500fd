"""The library transformers, asked what the files of a pretrained folder mean: offline, without code of the folder."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from routerjax.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Entries of these files become arguments of a tokenizer's class, and some of those name a file that it opens.
WITH_ARGUMENTS = ("tokenizer_config.json", "special_tokens_map.json")
FILE_ARGUMENTS = re.compile(r".*_(file|files|spm)|vocab|merges|init_inputs")


def from_pretrained(
    kind: Literal["AutoConfig", "AutoTokenizer"], files: Mapping[str, bytes], where: Path, read: Callable[[Any], T]
) -> T:
    """Load files by ``transformers.<kind>.from_pretrained``. The first call takes a second: it imports the library.

    The library sees copies in a folder of their own, so that no link or setting leads it anywhere; it asks no network,
    runs no code of the folder, and prints nothing.

    Args:
        kind: the class of transformers.
        files: all that the library may see, name -> content.
        where: the folder of those files, for messages.
        read: what is wanted of the loaded object.

    Raises:
        InputError: the library, or ``read``, fails on them.
    """
    with tempfile.TemporaryDirectory() as folder, _silent_transformers() as transformers:
        try:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(_without_paths(content) if name in WITH_ARGUMENTS else content)
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


def _without_paths(content: bytes) -> bytes:
    """Leave out what would lead the library to a file elsewhere; those of the folder it finds by their names."""
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content  # the library says so
    if not isinstance(settings, dict):
        return content
    return json.dumps({key: value for key, value in settings.items() if not FILE_ARGUMENTS.fullmatch(key)}).encode()


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
