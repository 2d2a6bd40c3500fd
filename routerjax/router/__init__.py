"""Routers: what they are made of, how they score, and how they lie on disk."""

from routerjax.router.bert import BertClassifier, load_bert
from routerjax.router.families import FAMILIES, Family, find_family, make_module, remember
from routerjax.router.folder import load_router, router_folder, save_router
from routerjax.router.router import Router

__all__ = [
    "FAMILIES",
    "BertClassifier",
    "Family",
    "Router",
    "find_family",
    "load_bert",
    "load_router",
    "make_module",
    "remember",
    "router_folder",
    "save_router",
]
