"""Operations that are counted from sizes are those that XLA counts in the program of a step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from routerjax import data, models, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.training.step import make_sums
from tests.data.test_loader import token_battles
from tests.training.battles import NUM_MODELS, random_battles

SIZES = {"vocab_size": 100, "width": 256, "num_layers": 2, "num_heads": 8, "mlp_dim": 512, "max_positions": 128}
BERT = models.BertEncoder(**SIZES, dropout_rate=0.0, attention_dropout_rate=0.0)


def causal(**chosen: object) -> models.CausalRouter:
    """A router of two layers, not scanned: the body of a loop is counted once, however often it runs."""
    config = models.DecoderConfig(
        model_type="llama", **SIZES, num_key_heads=2, head_dim=32, attention_scale=32**-0.5, windows=(0, 0), unroll=2,
        **chosen,
    )  # fmt: skip
    return models.CausalRouter(models.Decoder(config), num_models=3)


@pytest.mark.parametrize(
    "module",
    [
        causal(),
        causal(lora_rank=8, added_tokens=1),  # a trained embedding: the lowest layer's input has a gradient, too
        causal(remat=True),
        causal(remat=True, remat_policy="dots"),
        models.BertRouter(BERT, num_models=3),
        models.BertRouter(BERT.clone(remat=True), num_models=3),
        models.EmbedThen(models.SentenceEmbedding(BERT), models.MatrixFactorization(num_models=3)),
    ],
    ids=["trained", "adapters", "remat", "remat_dots", "bert", "bert_remat", "sentence"],
)
def test_operations_of_a_step_are_those_that_xla_counts(module: nn.Module) -> None:
    battles, token_ids = token_battles()
    batch = next(data.TokenBatches(battles, token_ids, lengths=(128,), batch_tokens=512).in_order())
    optimizer = training.AdamW(OptimizerConfig()).transformation(1)
    state = jax.eval_shape(lambda: training.create_state(module, batch.query, optimizer, key=jax.random.key(0)))
    # Before it is optimised: within one program XLA finds what is computed twice, and computes it once.
    program = jax.jit(make_sums(module, BRADLEY_TERRY)).lower(state, batch, jax.random.key(0))
    rows, length = batch.query["token_ids"].shape
    counted = module.training_flops(state.trained, state.fixed, rows=rows, length=length)
    assert counted.total == pytest.approx(program.cost_analysis()["flops"], rel=0.02)


def test_operations_of_given_embeddings_are_those_that_xla_counts() -> None:
    module, batch = models.MatrixFactorization(num_models=NUM_MODELS, model_dim=64), random_battles()
    query = {"embedding": jnp.zeros((len(batch.weight), 384))}
    state = jax.eval_shape(lambda: training.create_state(module, query, optax.sgd(1.0), key=jax.random.key(0)))
    program = jax.jit(make_sums(module, BRADLEY_TERRY)).lower(state, batch._replace(query=query), jax.random.key(0))
    counted = module.training_flops(state.trained, state.fixed, rows=len(batch.weight), length=1)
    assert counted.total == pytest.approx(program.cost_analysis()["flops"], rel=0.02)
