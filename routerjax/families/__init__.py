"""Router families: what is known of a linen module so that a configuration can train it and a folder hold it.

A new one is one file here, and one in :mod:`routerjax.models` for its network.
"""

from routerjax.families.bert import BERT
from routerjax.families.causal import CAUSAL
from routerjax.families.clusters import CLUSTERS
from routerjax.families.family import (
    FAMILIES,
    Family,
    family_of,
    find_family,
    head_of,
    initial_variables,
    register_family,
)
from routerjax.families.knn import KNN
from routerjax.families.mf import MF
from routerjax.families.parameter_groups import layer_depths
from routerjax.families.pretrained_params import pretrained_params, pretrained_variables
from routerjax.families.sw import SW

__all__ = [
    "BERT",
    "CAUSAL",
    "CLUSTERS",
    "FAMILIES",
    "KNN",
    "MF",
    "SW",
    "Family",
    "family_of",
    "find_family",
    "head_of",
    "initial_variables",
    "layer_depths",
    "pretrained_params",
    "pretrained_variables",
    "register_family",
]
