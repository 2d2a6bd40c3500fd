"""Routers: what they are made of, how they score, and how they lie on disk."""

from routerjax.router.families import FAMILIES, Family, make_module
from routerjax.router.folder import load_router, router_folder, save_router
from routerjax.router.router import Router

__all__ = ["FAMILIES", "Family", "Router", "load_router", "make_module", "router_folder", "save_router"]
