"""Eight host devices for every test, before JAX starts; shape mistakes and warnings are errors."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import jax

# The first example of a property compiles; that is not slowness.
hypothesis.settings.register_profile("compiles", deadline=None)
hypothesis.settings.load_profile("compiles")
jax.config.update("jax_numpy_rank_promotion", "raise")
