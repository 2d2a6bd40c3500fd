"""Configurations are Python files."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path

from routerjax.config import ExperimentConfig
from routerjax.errors import InputError


def load_config(path: str | Path) -> ExperimentConfig:
    """Run a Python file's ``get_config()``; it may import its neighbours, as a script may.

    Raises:
        InputError: no such file, no ``get_config``, it raises, or it returns something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no configuration {path}: expected a Python file that defines get_config()")
    sys.path.insert(0, str(path.parent))
    try:
        # Run, not imported: bytecode that an import caches is stale where a script edits the file twice in a second.
        defined = runpy.run_path(str(path), run_name="routerjax_experiment")
        config = defined["get_config"]() if "get_config" in defined else None
    except Exception as error:  # whatever a user's file may raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else path
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"the configuration {where}: {kind}{error}") from error
    finally:
        sys.path.remove(str(path.parent))
    if "get_config" not in defined:
        raise InputError(f"the configuration {path} defines no get_config()")
    if not isinstance(config, ExperimentConfig):
        raise InputError(f"get_config() of {path} must return an ExperimentConfig, got {type(config).__name__}")
    return config
