"""Routers: what they are made of, how they score, how they lie on disk, and what published ones become."""

from routerjax.router.bert import BertClassifier, load_bert
from routerjax.router.families import FAMILIES, Family, make_module
from routerjax.router.folder import load_router, router_folder, save_router
from routerjax.router.importing import IMPORTERS, import_routellm_mf, routellm_features
from routerjax.router.router import Router

__all__ = [
    "FAMILIES",
    "IMPORTERS",
    "BertClassifier",
    "Family",
    "Router",
    "import_routellm_mf",
    "load_bert",
    "load_router",
    "make_module",
    "routellm_features",
    "router_folder",
    "save_router",
]
