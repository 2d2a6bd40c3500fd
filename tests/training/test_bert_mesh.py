"""A BERT trains on a mesh as on one device, and each device computes its share of every activation alone."""

import functools
import math

import numpy as np
import pytest

from routerjax import models
from routerjax.typing import PreferenceBatch, PyTree
from tests.training import test_decoder_mesh as decoders
from tests.training.test_decoder_mesh import MESHES, Recording, assert_alike, flat, shapes_in

BATCH, LENGTH, WIDTH, HEADS, MLP, VOCAB = 56, 12, 16, 8, 64, 128
FORMS = {
    "mpnet": {"model_type": "mpnet", "num_layers": 1, "num_token_types": 0},
    "bert": {"model_type": "bert", "num_layers": 2, "scan_layers": True, "remat": True},
}


def battles(seed: int) -> PreferenceBatch:
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(1, LENGTH + 1, (BATCH, 1))
    query = {
        "token_ids": rng.integers(VOCAB, size=(BATCH, LENGTH)).astype(np.int32),
        "attention_mask": (np.arange(LENGTH) < num_tokens).astype(np.int32),
    }
    return decoders.battles(seed)._replace(query=query)


@functools.cache
def trained(devices: str, form: str) -> tuple[PyTree, PyTree, Recording]:
    encoder = models.BertEncoder(
        vocab_size=VOCAB, width=WIDTH, num_heads=HEADS, mlp_dim=MLP, max_positions=16, dropout_rate=0.0,
        attention_dropout_rate=0.0, **FORMS[form],
    )  # fmt: skip
    router = models.BertRouter(encoder, num_models=4, dropout_rate=0.0)
    gradient, after, programs = decoders.three_steps(router, [battles(0), battles(1)], devices)
    return without_key_bias(gradient), without_key_bias(after), programs


def without_key_bias(tree: PyTree) -> PyTree:
    """A softmax does not change with the key's bias, whose gradient is rounding."""
    return {path: leaf for path, leaf in flat(tree).items() if path[-2:] != ("key", "bias")}


@pytest.mark.parametrize(("devices", "form"), [("4x2", "mpnet"), ("2x4", "bert")])
def test_a_bert_trains_on_a_mesh_as_on_one_device(devices: str, form: str) -> None:
    assert_alike(trained(devices, form)[:2], trained("one", form)[:2])


@pytest.mark.parametrize(("devices", "form"), [("4x2", "mpnet"), ("2x4", "bert")])
def test_no_device_computes_more_than_its_share(devices: str, form: str) -> None:
    model = MESHES[devices]
    rows = BATCH * model // 8
    largest = max(
        rows * LENGTH * WIDTH,  # hidden states, which devices that share a battle's work all have
        rows * LENGTH * MLP // model,
        rows * LENGTH * LENGTH * HEADS // model,
        WIDTH * MLP // model,  # a matrix of a layer, as it is used
    )
    for _, compiled in trained(devices, form)[2].programs:
        for shape in shapes_in(compiled.as_text()):
            is_stacked = form == "bert" and shape[0] == FORMS[form]["num_layers"]
            assert math.prod(shape[is_stacked:]) <= largest, shape
