"""The Bradley-Terry loss and its gradients against torch's binary cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import losses
from routerjax.likelihoods import BradleyTerry

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_bradley_terry_is_binary_cross_entropy(scale: float) -> None:
    rng = np.random.default_rng(0)
    margin = (scale * rng.standard_normal(500)).astype(np.float32)
    label = np.concatenate([rng.integers(0, 2, 200), np.full(100, 0.5), rng.random(200)]).astype(np.float32)
    reference_margin, reference_label = (torch.tensor(column, requires_grad=True) for column in (margin, label))
    reference = torch.nn.functional.binary_cross_entropy_with_logits(
        reference_margin, reference_label, reduction="none"
    )
    reference.sum().backward()

    ours = losses.bradley_terry(jnp.asarray(margin), jnp.asarray(label))
    np.testing.assert_allclose(ours, reference.detach().numpy(), rtol=2e-6, atol=1e-6)
    gradients = jax.vmap(jax.grad(losses.bradley_terry, argnums=(0, 1)))(margin, label)
    for gradient, column in zip(gradients, (reference_margin, reference_label), strict=True):
        np.testing.assert_allclose(gradient, column.grad.numpy(), rtol=2e-6, atol=1e-6)


def test_the_win_probability_is_torchs_sigmoid() -> None:
    scores = (5 * np.random.default_rng(1).standard_normal((50, 4))).astype(np.float32)
    reference = torch.sigmoid(torch.tensor(scores[:, 2] - scores[:, 1])).numpy()
    np.testing.assert_allclose(BradleyTerry().win_prob({}, jnp.asarray(scores), 2, 1), reference, rtol=1e-6)
