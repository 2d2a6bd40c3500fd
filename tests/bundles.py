"""The program of a bundle, in this process."""

import importlib.util
from pathlib import Path
from types import ModuleType


def loader(folder: Path) -> ModuleType:
    """The bundle's own ``load.py`` as a module, which no other bundle's shadows."""
    spec = importlib.util.spec_from_file_location("load_of_a_bundle", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
