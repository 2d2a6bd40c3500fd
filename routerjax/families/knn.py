"""Nearest neighbours."""

from routerjax.families.family import Family, register_family
from routerjax.likelihoods import BradleyTerry
from routerjax.models import NearestNeighbors, nearest_neighbors_memory

KNN = register_family(
    Family(
        name="knn",
        module=NearestNeighbors,
        trains=False,
        remember=lambda module, battles, _: nearest_neighbors_memory(battles, num_models=module.num_models),
        likelihood=BradleyTerry,
    )
)
