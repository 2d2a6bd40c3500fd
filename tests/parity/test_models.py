"""Matrix factorisation in the published code's form against torch: scores, gradients of the loss, steps of AdamW."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import models, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BradleyTerry
from routerjax.typing import PreferenceBatch
from tests.training.battles import NUM_MODELS, WIDTH, random_battles

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

NUM_STEPS = 12


class TorchMatrixFactorization(torch.nn.Module):
    """``score_m(q) = w2 . (v_m / |v_m| * (W1' v_q))``; the tensors have the published names and shapes."""

    def __init__(self, *, num_models: int, model_dim: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.P = torch.nn.Embedding(num_models, model_dim)
        self.text_proj = torch.nn.Sequential(torch.nn.Linear(width, model_dim, bias=False))
        self.classifier = torch.nn.Sequential(torch.nn.Linear(model_dim, 1, bias=False))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        models = torch.nn.functional.normalize(self.P.weight, dim=-1)
        return self.classifier(models[None, :, :] * self.text_proj(embedding)[:, None, :])[..., 0]


def our_names(tensors: Mapping[str, torch.Tensor]) -> dict:
    """Published tensors (or their gradients) as parameters of ``models.MatrixFactorization``."""
    arrays = {name: tensor.detach().to(torch.float32).numpy() for name, tensor in tensors.items()}
    return {
        "model_embedding": arrays["P.weight"].copy(),
        "prompt_projection": {"kernel": np.ascontiguousarray(arrays["text_proj.0.weight"].T)},
        "classifier": arrays["classifier.0.weight"][0].copy(),
    }


def test_matrix_factorization_at_full_size() -> None:
    num_models, model_dim, width, num_prompts, num_battles = 64, 128, 1536, 40, 200
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((num_prompts, width)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    query_index = rng.integers(num_prompts, size=num_battles)
    model_a = rng.integers(num_models, size=num_battles)
    model_b = (model_a + rng.integers(1, num_models, size=num_battles)) % num_models
    outcome = np.eye(3)[rng.integers(3, size=num_battles)]
    label = outcome[:, 0] + outcome[:, 1] / 2

    reference = TorchMatrixFactorization(num_models=num_models, model_dim=model_dim, width=width)
    params = our_names(dict(reference.named_parameters()))
    reference.double()
    expected = reference(torch.tensor(embedding, dtype=torch.float64))
    margin = expected[query_index, model_a] - expected[query_index, model_b]
    torch.nn.functional.binary_cross_entropy_with_logits(margin, torch.tensor(label)).backward()

    module = models.MatrixFactorization(num_models=num_models, bias=False, normalize_models=True)
    batch = PreferenceBatch(
        query={"embedding": jnp.asarray(embedding)},
        query_index=jnp.asarray(query_index),
        model_a=jnp.asarray(model_a),
        model_b=jnp.asarray(model_b),
        outcome=jnp.asarray(outcome, jnp.float32),
        weight=jnp.ones(num_battles),
    )
    scores = module.apply({"params": params}, batch.query)
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=1e-4, atol=1e-6)

    def loss(params: dict) -> jax.Array:
        return BradleyTerry().loss({}, module.apply({"params": params}, batch.query), batch).mean()

    gradients = our_names({name: parameter.grad for name, parameter in reference.named_parameters()})
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max()),
        jax.grad(loss)(params),
        gradients,
    )


@pytest.mark.parametrize("gradient_clip", [None, 0.05])
def test_steps_are_those_of_torch_adamw(gradient_clip: float | None) -> None:
    config = OptimizerConfig(
        learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.25, final_fraction=0.1, gradient_clip=gradient_clip
    )
    reference = TorchMatrixFactorization(num_models=NUM_MODELS, model_dim=8, width=WIDTH)
    module = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=8, bias=False, normalize_models=True)
    optimizer = training.AdamW(config).transformation(NUM_STEPS)
    batches = [random_battles(seed=seed) for seed in range(NUM_STEPS)]
    state = training.create_state(module, batches[0].query, optimizer, key=jax.random.key(0))
    trained = {"params": our_names(dict(reference.named_parameters()))}
    state = state.replace(trained=trained, opt_state=optimizer.init(trained))
    weight_per_step = float(np.mean([np.sum(batch.weight) for batch in batches]))
    step = jax.jit(training.make_train_step(module, BradleyTerry(), optimizer, weight_per_step=weight_per_step))

    reference.double()
    # Betas and epsilon are torch's defaults.
    adamw = torch.optim.AdamW(reference.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for number, batch in enumerate(batches):
        adamw.param_groups[0]["lr"] = learning_rate(config, number)
        adamw.zero_grad()
        column = {name: torch.tensor(np.asarray(getattr(batch, name))) for name in batch._fields if name != "query"}
        scores = reference(torch.tensor(np.asarray(batch.query["embedding"]), dtype=torch.float64))
        rows = column["query_index"].long()
        margin = scores[rows, column["model_a"].long()] - scores[rows, column["model_b"].long()]
        label = (column["outcome"] @ torch.tensor([1.0, 0.5, 0.0])).double()
        weight = column["weight"].double()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, label, weight=weight, reduction="sum")
        (loss / weight_per_step).backward()
        largest_norm = float("inf") if gradient_clip is None else gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), largest_norm)
        adamw.step()

        state, metrics = step(state, batch, jax.random.key(1))
        np.testing.assert_allclose(metrics["loss_sum"], loss.detach().numpy(), rtol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"], norm.numpy(), rtol=1e-4)
        assert gradient_clip is None or norm > gradient_clip
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
            state.variables["params"],
            our_names(dict(reference.named_parameters())),
        )


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Linear warm-up from 0, then cosine decay to ``final_fraction`` of the peak."""
    warmup = round(config.warmup_fraction * NUM_STEPS)
    if step < warmup:
        return config.learning_rate * step / warmup
    cosine = (1 + np.cos(np.pi * (step - warmup) / (NUM_STEPS - warmup))) / 2
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
