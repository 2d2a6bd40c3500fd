"""Arrays come back from router folders and bundles as they went in: shape, dtype and bits."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from routerjax import Router, formats, load_router, save_router
from routerjax.families import Family, register_family
from routerjax.features import GivenFeaturizer
from tests.routers import tiny_router

KINDS = [(dtype, shape) for dtype in ("float32", "bfloat16", "int32", "uint32") for shape in ((), (3,), (2, 3))]


class Hoarder(nn.Module):
    """A dense layer that keeps arrays of all kinds."""

    num_models: int

    @nn.compact
    def __call__(self, query: dict, *, deterministic: bool = True) -> jax.Array:
        for dtype, shape in KINDS:
            self.variable("memory", f"{dtype}_{len(shape)}", jnp.zeros, shape, dtype)
        return nn.Dense(self.num_models)(query["embedding"])


HOARDER = register_family(Family(name="hoarder", module=Hoarder))


@pytest.fixture
def router(tmp_path: Path) -> Router:
    """A router that is calibrated by Platt's method, whose slope is a scalar, with a memory of arrays of all kinds."""
    spec = GivenFeaturizer(source="e.npy", width=16, fingerprint="f")
    rng = np.random.default_rng(0)
    memory = {
        f"{dtype}_{len(shape)}": jnp.asarray(rng.integers(1, 1 << 31, shape) / (7 if "float" in dtype else 1), dtype)
        for dtype, shape in KINDS
    }
    calibration = {"slope": jnp.float32(2), "intercept": jnp.float32(0.25)}
    params = HOARDER.start(Hoarder(num_models=3), spec, jax.random.key(0))["params"]
    variables = {"params": params, "memory": memory, "calibration": calibration}
    return tiny_router(tmp_path, family="hoarder", attributes={}, featurizer=spec, variables=variables)


def assert_same(before: jax.Array, after: jax.Array | np.ndarray) -> None:
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert np.asarray(after).tobytes() == np.asarray(before).tobytes()


def test_arrays_of_a_router_folder(router: Router, tmp_path: Path) -> None:
    save_router(router, tmp_path / "saved")
    loaded = load_router(tmp_path / "saved")
    jax.tree.map(assert_same, router.variables, loaded.variables)
    save_router(loaded, tmp_path / "again")
    for name in ("router.safetensors", "router.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_arrays_of_a_bundle_of_a_router_that_was_never_saved(router: Router, tmp_path: Path) -> None:
    assert formats.export(router, tmp_path / "bundle", "stablehlo")["from_embedding"] <= 1e-6
    held = safetensors.numpy.load_file(tmp_path / "bundle" / "router.safetensors")
    for collection, leaves in router.variables.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
            name = "/".join([collection, *(key.key for key in path)])
            assert_same(leaf, held[name])
