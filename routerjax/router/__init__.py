"""Routers: what they are made of, how they score, and how they lie on disk."""

from routerjax.models import typed_choices
from routerjax.router.families import FAMILIES, Family, find_family, make_module, remember, typed_attributes
from routerjax.router.folder import load_router, router_folder, save_router
from routerjax.router.initial_params import pretrained_params
from routerjax.router.reader import TextReader, load_reader
from routerjax.router.router import Router

__all__ = [
    "FAMILIES",
    "Family",
    "Router",
    "TextReader",
    "find_family",
    "load_reader",
    "load_router",
    "make_module",
    "pretrained_params",
    "remember",
    "router_folder",
    "save_router",
    "typed_attributes",
    "typed_choices",
]
