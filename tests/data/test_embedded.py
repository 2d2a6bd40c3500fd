"""Batches of battles with embeddings: what a step on all battles takes, gathered on the host."""

from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, data, training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.models import MatrixFactorization
from routerjax.typing import PreferenceBatch
from tests.data.test_loader import token_battles

BATTLES, _ = token_battles()
WIDTH, BATCH_SIZE = 5, 16
# Rows of prompts that are not among the battles too, in another order.
TEXTS = [*reversed(BATTLES.unique_prompts), "one that no battle is on"]
EMBEDDING = np.random.default_rng(0).standard_normal((len(TEXTS), WIDTH)).astype(np.float32)
PROMPTS = data.EmbeddedPrompts(TEXTS, EMBEDDING)


def batches(num_devices: int = 1) -> data.EmbeddedBatches:
    return PROMPTS.batches(BATTLES, batch_size=BATCH_SIZE, num_devices=num_devices)


def joined(parts: list[PreferenceBatch]) -> PreferenceBatch:
    offset = 0
    for part in parts:
        part.query_index[:] += offset
        offset += len(part.query_index)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def test_a_pass_is_the_steps_on_all_battles() -> None:
    whole = PROMPTS.batch(BATTLES)
    order = training.epoch_order(seed=3, epoch=1, num_battles=len(BATTLES), batch_size=BATCH_SIZE)
    in_order = np.where(np.arange(order.size) < len(BATTLES), np.arange(order.size), -1).reshape(order.shape)
    for a_pass, rows in ((batches().shuffled(seed=3, epoch=1), order), (batches().in_order(), in_order)):
        for batch, battles in zip(a_pass, rows, strict=True):
            jax.tree.map(np.testing.assert_array_equal, batch, training.take(whole, battles))
    assert batches().battles_of(seed=3, epoch=1, start=2, stop=4).tolist() == order[2:4].ravel().tolist()
    assert len(batches().battles_of(seed=3, epoch=1, start=0, stop=99)) == len(BATTLES)
    assert batches().num_batches == len(order)


def test_a_pass_begins_anywhere_and_has_parts() -> None:
    whole = list(batches(4).shuffled(seed=0, epoch=0))
    shares = [batches(4).shuffled(seed=0, epoch=0, start=2, parts=parts) for parts in (range(1), range(1, 4))]
    for batch, *parts in zip(whole[2:], *shares, strict=True):
        jax.tree.map(np.testing.assert_array_equal, joined(parts), batch)


@pytest.mark.parametrize("devices", ["jit", "pmap"])
def test_battles_from_the_host_teach_what_those_on_the_device_do(devices: str, tmp_path: Path) -> None:
    path = tmp_path / "embedding.npy"
    np.save(path, EMBEDDING)
    mapped = data.EmbeddedPrompts(TEXTS, np.load(path, mmap_mode="r"))
    config = TrainingConfig(epochs=3, batch_size=BATCH_SIZE, devices=devices)
    parts = training.wrapper_of(config).num_parts
    sources = [PROMPTS.batch(BATTLES), mapped.batches(BATTLES, batch_size=BATCH_SIZE, num_devices=parts)]
    resident, streamed = (
        training.fit(
            MatrixFactorization(num_models=3, model_dim=4),
            source,
            validation,
            optimizer=OptimizerConfig(learning_rate=0.03),
            training=config,
        )
        for source, validation in zip(sources, [sources[0], PROMPTS.batches(BATTLES, batch_size=64)], strict=True)
    )
    for one, other in zip(*map(jax.tree.leaves, (resident.variables, streamed.variables)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(resident.history, streamed.history, strict=True):
        for name in ("loss", "validation_loss", "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
        assert (one["input_wait_share"] > 0, other["input_wait_share"] > 0) == (False, True)
    assert streamed.history[-1]["loss"] < streamed.history[0]["loss"]


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"batch size \(16\) must be divisible by device count \(3\)"):
        batches(3)
    broken = EMBEDDING.copy()
    broken[TEXTS.index(BATTLES.unique_prompts[7])] = np.inf
    with pytest.raises(InputError, match="the embedding of prompt 7 is not finite"):
        data.EmbeddedPrompts(TEXTS, broken).batches(BATTLES, batch_size=BATCH_SIZE)
