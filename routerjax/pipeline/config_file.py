"""Configurations are Python files."""

from __future__ import annotations

import contextlib
import importlib
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from routerjax.config import ExperimentConfig
from routerjax.errors import InputError


def load_config(path: str | Path) -> ExperimentConfig:
    """Run a Python file's ``get_config()``; it may import its neighbours, as a script may.

    Neighbours are read afresh each time: one of the same name in another folder, or one that changed, is another.

    Raises:
        InputError: no such file, no ``get_config``, it raises or exits, or it returns something else.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"no configuration {path}: expected a Python file (.py) that defines get_config()")
    try:
        with _neighbours(path.parent):
            # Run, not imported: bytecode that an import caches is stale where a script edits the file twice a second.
            defined = runpy.run_path(str(path), run_name="routerjax_experiment")
            config = defined["get_config"]() if "get_config" in defined else None
    except KeyboardInterrupt:  # of the terminal, not of the file
        raise
    except BaseException as error:  # whatever a user's file may raise, sys.exit() included
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else path
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"the configuration {where}: {kind}{error}") from error
    if "get_config" not in defined:
        raise InputError(f"the configuration {path} defines no get_config()")
    if not isinstance(config, ExperimentConfig):
        raise InputError(f"get_config() of {path} must return an ExperimentConfig, got {type(config).__name__}")
    return config


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Let imports find the modules of ``folder``, and forget them afterwards."""
    before, writes_bytecode, name = set(sys.modules), sys.dont_write_bytecode, str(folder)
    sys.path.insert(0, name)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()  # a file that was just written may not be in a folder's cached listing
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_bytecode
        with contextlib.suppress(ValueError):
            sys.path.remove(name)
        for module in set(sys.modules) - before:
            file = getattr(sys.modules[module], "__file__", None)
            if file is not None and Path(file).resolve().is_relative_to(folder.resolve()):
                del sys.modules[module]
