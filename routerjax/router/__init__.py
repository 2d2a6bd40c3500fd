"""Routers: what they are made of, how they score, and how they lie on disk."""

from routerjax.router.description import FILE as DESCRIPTION_FILE
from routerjax.router.folder import load_router, require_router, router_folder, save_router, warn_of_losses
from routerjax.router.router import Router

__all__ = [
    "DESCRIPTION_FILE",
    "Router",
    "load_router",
    "require_router",
    "router_folder",
    "save_router",
    "warn_of_losses",
]
