"""Small routers on a tiny encoder."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from routerjax import Router, features
from routerjax import models as modules
from routerjax.likelihoods import COLLECTION, make_likelihood
from routerjax.router import load_reader, make_module, pretrained_params
from routerjax.sealing import SEAL, seal
from routerjax.typing import PyTree
from tests.encoders import save_tiny_encoder

NAMES = ("big", "medium", "small")


def tiny_router(folder: Path, **changes: object) -> Router:
    """A matrix factorisation with random parameters; its encoder is in ``folder/encoder``."""
    source = folder / "encoder"
    if not source.exists():
        save_tiny_encoder(source)
    spec = features.load_encoder(source, max_length=48).spec
    module = modules.MatrixFactorization(num_models=3, model_dim=8)
    router = Router(
        family="mf",
        attributes={"model_dim": 8},
        models=NAMES,
        strong="big",
        weak="small",
        features=spec,
        variables={"params": _random_params(module, spec.width)},
        provenance={"made by": "a test"},
    )
    return dataclasses.replace(router, **changes)


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
        save_tiny_encoder(source)
    attributes = attributes or {}
    reader = load_reader(source, chosen, embeds=family != "bert")
    models = ("big", "small") if loss == "three_labels" else NAMES
    likelihood = make_likelihood(loss, readout=readout)
    module = make_module(family, models=models, attributes=attributes, likelihood=likelihood, reader=reader)
    params = pretrained_params(module, source, key=jax.random.key(3))
    router = Router(
        family=family,
        attributes=attributes,
        models=models,
        strong="big",
        weak="small",
        features=reader.spec(source, 48),
        reader=reader,
        likelihood=likelihood,
        variables={"params": params, **({COLLECTION: own} if (own := likelihood.initial_params()) else {})},
        provenance={"made by": "a test"},
    )
    return dataclasses.replace(router, **changes)


def forge(folder: Path, **changes: object) -> None:
    """Other values in a router folder's description, with the hashes that make it consistent again."""
    path = folder / "router.json"
    content = {**json.loads(path.read_text()), **changes}
    tensors = (folder / "router.safetensors").read_bytes()
    content |= {"tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    path.write_text(json.dumps(seal({name: value for name, value in content.items() if name != SEAL})))
