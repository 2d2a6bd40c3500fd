"""A decoder trains on many devices as on one, and on a mesh nothing of its size is ever whole on a device."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from routerjax import models, partitioning, training
from routerjax.config import OptimizerConfig
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.training.step import accumulating_step
from routerjax.typing import PreferenceBatch, PyTree

# No two of them are alike, so that a shape says what is whole in it.
BATCH, LENGTH, NUM_MODELS, NUM_LAYERS, RANK = 56, 5, 4, 3, 8
MESHES = {"8x1": 1, "4x2": 2, "2x4": 4}
CONFIG = models.DecoderConfig(
    model_type="qwen3", vocab_size=128, width=16, num_layers=NUM_LAYERS, num_heads=8, num_key_heads=4, head_dim=6,
    mlp_dim=40, max_positions=16, qk_norm=True, attention_scale=0.5, windows=(0, 3, 0), initializer_range=0.3,
    added_tokens=8, remat=True,
)  # fmt: skip
LARGEST_MATRIX = 16 * 48


def battles(seed: int) -> PreferenceBatch:
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(1, LENGTH + 1, (BATCH, 1))
    model_a = rng.integers(NUM_MODELS, size=BATCH).astype(np.int32)
    return PreferenceBatch(
        query={
            "token_ids": rng.integers(136, size=(BATCH, LENGTH)).astype(np.int32),
            "attention_mask": (np.arange(LENGTH) < num_tokens).astype(np.int32),
        },
        query_index=np.arange(BATCH, dtype=np.int32),
        model_a=model_a,
        model_b=(model_a + 1) % NUM_MODELS,
        outcome=np.eye(3, dtype=np.float32)[rng.integers(3, size=BATCH)],
        weight=rng.uniform(0.5, 2.0, BATCH).astype(np.float32),
    )


class Recording(training.Wrapper):
    """A wrapper whose programs are kept as they were compiled, with the arguments' shapes."""

    def __init__(self, wrapper: training.Wrapper) -> None:
        self.wrapper = wrapper
        self.programs: list[tuple[PyTree, jax.stages.Compiled]] = []
        for name in ("jit", "put", "split", "zeros", "start"):
            setattr(self, name, getattr(wrapper, name))

    def __call__(self, step: Callable, axes: tuple = (None, 0, None)) -> Callable:
        lower, compiled = self.wrapper(step, axes).lower, None

        def run(*arguments: PyTree) -> PyTree:
            nonlocal compiled
            if compiled is None:
                compiled = lower(*arguments).compile()
                self.programs.append((jax.tree.map(shape_of, arguments), compiled))
            return compiled(*arguments)

        return run


@functools.cache
def trained(devices: str, lora_rank: int, remat: bool = True) -> tuple[PyTree, PyTree, Recording]:
    config = dataclasses.replace(CONFIG, lora_rank=lora_rank, remat=remat)
    return three_steps(models.CausalRouter(models.Decoder(config), NUM_MODELS), [battles(0), battles(1)], devices)


def three_steps(module: nn.Module, parts: list[PreferenceBatch], devices: str) -> tuple[PyTree, PyTree, Recording]:
    """Gradients of the first step, what is trained after three, and the programs of the steps."""
    wrapper = {"one": training.jit_step, "pmap": training.pmap_step}.get(devices)
    recording = Recording(wrapper or training.mesh_step(partitioning.make_mesh(MESHES[devices])))
    # Random everywhere: the second factors of adapters would start at 0.
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), parts[0].query))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    recipe = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.0, final_fraction=1.0, weight_decay=0.0)
    optimizer, key = training.AdamW(recipe).transformation(3), jax.random.key(0)
    state = training.create_state(
        module, parts[0].query, optimizer, key=key, variables=variables, wrapper=recording.wrapper
    )
    step = accumulating_step(module, BRADLEY_TERRY, optimizer, weight_per_step=1.0, wrapper=recording)
    key = recording.put(key)
    state, _ = step(state, map(recording.split, parts), key)
    # Adam's first moment after one step is a tenth of the gradient.
    ((_, moment),) = jax.device_get(optax.tree.get_all_with_path(state.opt_state, "mu"))
    for _ in range(2):
        state, _ = step(state, map(recording.split, parts), key)
    return jax.tree.map(lambda leaf: 10 * leaf, moment), jax.device_get(state.trained), recording


@pytest.mark.parametrize("lora_rank", [0, RANK])
@pytest.mark.parametrize("devices", [*MESHES, "pmap"])
def test_a_decoder_trains_on_many_devices_as_on_one(devices: str, lora_rank: int) -> None:
    assert_alike(trained(devices, lora_rank)[:2], trained("one", lora_rank)[:2])


@pytest.mark.parametrize(
    ("devices", "lora_rank", "remat"),
    [*[(devices, rank, True) for devices in MESHES for rank in (0, RANK)], ("8x1", 0, False)],
)
def test_on_a_mesh_no_array_of_a_step_is_whole(devices: str, lora_rank: int, remat: bool) -> None:
    programs = trained(devices, lora_rank, remat)[2].programs
    assert len(programs) == 2  # the sums of a micro-batch, and the update
    whole = {(LENGTH, LENGTH), (LENGTH, LENGTH, BATCH)}
    whole |= {tuple(sorted([width, BATCH * LENGTH])) for width in (16, 24, 40, 48)}
    for shapes, compiled in programs:
        (state,) = (leaf for leaf in jax.tree.leaves(shapes, is_leaf=is_state) if is_state(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.variables):
            if is_matrix(path, leaf):
                whole |= {dimensions(leaf.shape), dimensions(leaf.shape[-2:])}
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            assert not (is_matrix(path, leaf) and leaf.sharding.is_fully_replicated), path
        carry = jax.tree_util.tree_leaves_with_path(shapes[0])
        for (path, leaf), place in zip(carry, jax.tree.leaves(compiled.output_shardings[0]), strict=True):
            assert not (is_matrix(path, leaf) and place.is_fully_replicated), path
            if "'kernel'" in jax.tree_util.keystr(path) and "layers" in jax.tree_util.keystr(path):
                assert math.prod(place.shard_shape(leaf.shape)) == leaf.size // 8, path  # numbers a device
        text = compiled.as_text()
        for carried in re.findall(r" = (\(.*\)) while\(", text):
            for shape in shapes_in(carried):
                assert dimensions(shape) not in whole, shape
        gathered = [
            math.prod(shape)
            for line in re.findall(r" = (.*) all-gather(?:-start)?\(", text)
            for shape in shapes_in(line)
        ]
        # One matrix of a layer, of which tensor parallel devices hold a part each; or the ids of all tokens.
        assert max(gathered, default=0) <= max(LARGEST_MATRIX // MESHES[devices], BATCH * LENGTH)


def assert_alike(got: tuple[PyTree, ...], expected: tuple[PyTree, ...]) -> None:
    """Gradients of the first step, and what is trained after three."""
    for each, on_one, tolerance in zip(got, map(flat, expected), (1e-5, 1e-3), strict=True):
        for path, leaf in flat(each).items():
            scale = np.abs(on_one[path]).max()
            assert scale > 0.005, path
            np.testing.assert_allclose(leaf, on_one[path], rtol=0, atol=tolerance * max(scale, 1), err_msg=str(path))


def flat(tree: PyTree) -> dict:
    return flax.traverse_util.flatten_dict(tree)


def shape_of(leaf: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def is_state(node: object) -> bool:
    return isinstance(node, training.TrainState)


def is_matrix(path: tuple, leaf: jax.ShapeDtypeStruct) -> bool:
    """Return True unless it is a vector, or a vector of each layer."""
    return leaf.ndim - ("layers" in jax.tree_util.keystr(path)) > 1


def dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes in order, without axes of one."""
    return tuple(sorted(size for size in shape if size > 1))


def shapes_in(text: str) -> list[tuple[int, ...]]:
    """Shapes in a line of a program."""
    return [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w+\[([\d,]+)\]", text)]
