"""Learn LLM routers from preference data, in JAX.

Names are bound on first use, so that ``import routerjax`` costs nothing and ``routerjax --help`` never starts JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from routerjax import bradley_terry as bradley_terry
    from routerjax import data as data
    from routerjax import evaluation as evaluation
    from routerjax import families as families
    from routerjax import features as features
    from routerjax import formats as formats
    from routerjax import losses as losses
    from routerjax import metrics as metrics
    from routerjax import models as models
    from routerjax import policies as policies
    from routerjax import routing as routing
    from routerjax import scoring as scoring
    from routerjax import training as training
    from routerjax.errors import InputError as InputError
    from routerjax.router import Router as Router
    from routerjax.router import load_router as load_router
    from routerjax.router import save_router as save_router

__version__ = "0.1.0"

_MEMBERS = {
    "InputError": "routerjax.errors",
    "Router": "routerjax.router",
    "load_router": "routerjax.router",
    "save_router": "routerjax.router",
}

__all__ = [
    "InputError",
    "Router",
    "bradley_terry",
    "data",
    "evaluation",
    "families",
    "features",
    "formats",
    "load_router",
    "losses",
    "metrics",
    "models",
    "policies",
    "routing",
    "save_router",
    "scoring",
    "training",
]


def __getattr__(name: str) -> object:
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    if name in __all__:
        return importlib.import_module(f"routerjax.{name}")
    raise AttributeError(f"module 'routerjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
