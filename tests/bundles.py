"""Bundles: their program in this process, and their descriptions with other values."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

from routerjax.sealing import SEAL, seal

PROGRAM = "routerjax_runtime.py"


def loader(folder: Path) -> ModuleType:
    """The bundle's own runtime as a module, which no other bundle's shadows."""
    spec = importlib.util.spec_from_file_location("runtime_of_a_bundle", folder / PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forge(folder: Path, **changes: object) -> None:
    """Change values in the bundle's description, and its hash with them."""
    path = folder / "bundle.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(seal({name: value for name, value in content.items() if name != SEAL})))
