"""Small routers on a tiny encoder."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from routerjax import Router, features, models
from routerjax.families import find_family, pretrained_variables
from routerjax.likelihoods import COLLECTION, make_likelihood
from routerjax.policies import Threshold
from routerjax.sealing import SEAL, seal
from routerjax.typing import PyTree
from tests.decoders import save_tiny_decoder
from tests.encoders import save_tiny_encoder
from tests.models.test_baselines import pair_battles

NAMES = ("big", "medium", "small")


def tiny_router(
    folder: Path,
    *,
    family: str = "mf",
    attributes: dict | None = None,
    models: tuple[str, ...] = NAMES,
    featurizer: features.Featurizer | None = None,
    **changes: object,
) -> Router:
    """A matrix factorisation with random parameters; its encoder is in ``folder/encoder``."""
    source = folder / "encoder"
    if featurizer is None and not source.exists():
        save_tiny_encoder(source)
    made = features.load_encoder(source, max_length=48) if featurizer is None else featurizer
    module = find_family(family).make_module(
        num_outputs=len(models), attributes={"model_dim": 8} if attributes is None else attributes, featurizer=made
    )
    given = {
        "provenance": {"made by": "a test"},
        **changes,
    }
    if "variables" not in given:
        given["variables"] = {"params": _random_params(module, made.width)}
    return Router(module=module, featurizer=made, models=models, **_with_policy(given))


def _with_policy(changes: dict) -> dict:
    """Put a policy in the place of the strong model, the weak one and the threshold that are given."""
    fields = {name: changes.pop(name) for name in ("strong", "weak", "threshold") if name in changes}
    return {"policy": Threshold(**{"strong": "big", "weak": "small", **fields}), **changes}


def tiny_memory_router(folder: Path) -> Router:
    """Nearest neighbours of given embeddings, 5 wide."""
    memory = models.nearest_neighbors_memory(pair_battles(), num_models=2)
    return tiny_router(
        folder,
        family="knn",
        attributes={"k": 3},
        models=("big", "small"),
        variables={"memory": memory},
        featurizer=features.GivenFeaturizer(source="e.npy", width=5, fingerprint="f"),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _random_params(module: nn.Module, width: int) -> PyTree:
    variables = nn.meta.unbox(module.init(jax.random.key(5), {"embedding": jnp.zeros((1, width))}))
    return jax.tree.map(lambda leaf: 3 * leaf, variables["params"])


def tiny_text_router(
    folder: Path,
    *,
    family: str = "bert",
    attributes: dict | None = None,
    loss: str = "bradley_terry",
    readout: str = "half_tie",
    chosen: dict | None = None,
    **changes: object,
) -> Router:
    """A router that reads text itself; its encoder started as that in ``folder/encoder``, with what is chosen of it."""
    source = folder / "encoder"
    if not source.exists():
        save_tiny_decoder(source) if family == "causal" else save_tiny_encoder(source)
    reads_text = find_family(family).reads_text
    featurizer = features.load_tokens(source, max_length=48, chosen=chosen, embeds=not reads_text).for_scoring()
    likelihood = make_likelihood(loss, readout=readout)
    models = ("big", "small") if likelihood.is_of_one_pair else NAMES
    module = find_family(family).make_module(
        num_outputs=len(likelihood.output_names(models)), attributes=attributes or {}, featurizer=featurizer
    )
    started = jax.tree.map(jnp.asarray, pretrained_variables(module, source, jax.random.key(3)))
    router = Router(
        module=module,
        featurizer=featurizer,
        models=models,
        policy=Threshold("big", "small"),
        likelihood=likelihood,
        variables={**started, **({COLLECTION: initial} if (initial := likelihood.initial_params()) else {})},
        provenance={"made by": "a test"},
    )
    return dataclasses.replace(router, **_with_policy(changes))


def forge(folder: Path, **changes: object) -> None:
    """Change values in a router folder's description, and its hashes with them."""
    path = folder / "router.json"
    content = {**json.loads(path.read_text()), **changes}
    tensors = (folder / "router.safetensors").read_bytes()
    content |= {"tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    path.write_text(json.dumps(seal({name: value for name, value in content.items() if name != SEAL})))
