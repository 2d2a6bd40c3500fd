"""Fingerprints of arrays: of their content alone, wherever it lies; one changed bit changes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.training import fingerprint as fingerprints
from routerjax.training.fingerprint import fingerprint

TREE = {
    "kernel": np.random.default_rng(0).standard_normal((16, 6, 5)).astype(np.float32),
    "half": jnp.arange(7, dtype=jnp.bfloat16),
    "step": jnp.int32(5),
    "mask": np.arange(9) > 3,
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.arange(8, dtype=np.int8),
    "wide": np.arange(5, dtype=np.int64),
}


def test_it_is_of_the_content_wherever_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    sharded = jax.device_put(TREE["kernel"], jax.NamedSharding(mesh, jax.P("data", "model")))
    on_device = {name: jnp.asarray(leaf) for name, leaf in TREE.items() if name != "wide"} | {"wide": TREE["wide"]}
    expected = fingerprint(TREE)
    assert fingerprint(on_device) == expected
    monkeypatch.setattr(fingerprints, "LARGE", 0)  # as if they were large: the devices compute it
    assert fingerprint(on_device) == expected
    assert fingerprint({**on_device, "kernel": sharded}) == expected


@pytest.mark.parametrize("name", [name for name in TREE if name != "empty"])
def test_a_changed_bit_changes_it(name: str) -> None:
    for place in (0, -1):
        changed = np.array(TREE[name], copy=True)
        changed.reshape(-1).view(np.uint8)[place] ^= 1
        assert fingerprint({**TREE, name: changed}) != fingerprint(TREE)


def test_exchanged_elements_names_types_and_shapes_change_it() -> None:
    kernel = np.asarray(TREE["kernel"])
    others = [kernel[::-1], kernel.reshape(16, 30), kernel.view(np.int32)]
    prints = [fingerprint({"kernel": other}) for other in (kernel, *others)]
    prints.append(fingerprint({"other": kernel}))
    assert len(set(prints)) == len(prints)
