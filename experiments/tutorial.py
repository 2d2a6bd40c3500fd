"""A router of one's own without the command line: battles, embeddings, a module, a likelihood, a curve, an export.

    python experiments/tutorial.py FOLDER      writes FOLDER/router and FOLDER/bundle; a minute on two CPU cores

The module is a two-layer perceptron, ties have fixed odds, and the optimiser is an optax chain.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from routerjax import Router, data, families, features, formats, likelihoods, losses, metrics, save_router, training
from routerjax.config import FeatureConfig, TrainingConfig
from routerjax.policies import Threshold
from routerjax.typing import Query, Sides


class Perceptron(nn.Module):
    """A score of each model from an embedding; any linen module from a query to scores will do."""

    num_models: int
    hidden: int = 64

    @nn.compact
    def __call__(self, query: Query) -> jax.Array:
        """Score ``embedding [batch, embed]``."""
        return nn.Dense(self.num_models)(nn.gelu(nn.Dense(self.hidden)(query["embedding"])))


@likelihoods.register_likelihood
class FixedTie(likelihoods.Likelihood):
    """Davidson's model of ties with odds that are given rather than learned."""

    name = "fixed_tie"

    def log_prob(self, params: object, scores: jax.Array, sides: Sides) -> jax.Array:
        """Log-probabilities of (a wins, tie, b wins)."""
        return losses.davidson_log_prob(losses.margin(scores, sides), jnp.float32(-0.5))


families.register_family(families.Family(name="perceptron", module=Perceptron))


def main(folder: Path) -> None:
    arena = data.simulate_arena(num_prompts=1000, num_test_prompts=400, seed=0)
    train, held_out = data.split_by_prompt(arena.preferences, validation_fraction=0.1, seed=0)
    encoder = features.load_encoder(FeatureConfig.encoder)
    prompts, models = arena.preferences.unique_prompts, arena.preferences.models
    embedded = data.EmbeddedPrompts(prompts, encoder.encode(prompts))

    module, likelihood = Perceptron(num_models=len(models)), FixedTie()
    result = training.fit(
        module,
        embedded.batch(train),
        embedded.batch(held_out),
        likelihood=likelihood,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.lion(3e-4, weight_decay=1e-2)),
        training=TrainingConfig(epochs=20, batch_size=256),
    )
    kept = {"models": models, "policy": Threshold("sim-large", "sim-small"), "variables": result.variables}
    router = Router(module=module, featurizer=encoder, likelihood=likelihood, **kept)
    quality = arena.benchmark.quality
    win_prob = router.win_prob(arena.benchmark.prompts)
    curve = metrics.cost_quality_curve(win_prob, quality["sim-large"], quality["sim-small"])
    loss = f"validation loss {result.best_loss:.4f} (win, tie and loss at equal odds: 1.0986)"
    print(f"{loss}, APGR {metrics.apgr(curve):.3f}")
    save_router(router, folder / "router")
    print("exported:", formats.export(router, folder / "bundle", "stablehlo"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
