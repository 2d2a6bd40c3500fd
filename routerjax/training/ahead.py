"""Training steps compiled ahead of time, without weights: what a run keeps in the memory of each device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np

from routerjax.likelihoods import Likelihood
from routerjax.training.optimizer import AdamW
from routerjax.training.parallel import Carry, StateT, Wrapper
from routerjax.training.state import TrainState, create_state
from routerjax.training.step import accumulating_step, gradient_shapes
from routerjax.typing import PreferenceBatch, PyTree, Variables

# Any: they change no shape.
NUM_STEPS = 1000
WEIGHT_PER_STEP = 1.0


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a run keeps on each device.

    Attributes:
        state: shapes of the training state, all devices together.
        parameters: trained and fixed ones.
        moments: of the optimiser.
        gradients: sums over the micro-batches of a step.
        temporaries: what a step needs beyond those, by the compiler of the devices that are here; None if it was not
            compiled.
    """

    state: TrainState
    parameters: int
    moments: int
    gradients: int
    temporaries: int | None

    @property
    def kept(self) -> int:
        """Bytes that are there between two steps."""
        return self.parameters + self.moments + self.gradients

    @property
    def total(self) -> int | None:
        """Bytes at the largest; None if the step was not compiled."""
        return None if self.temporaries is None else self.kept + self.temporaries


def step_memory(
    module: nn.Module,
    batch: PreferenceBatch,
    *,
    likelihood: Likelihood,
    optimizer: AdamW,
    wrapper: Wrapper,
    most_kept: float = math.inf,
) -> StepMemory:
    """Compile the steps that :func:`routerjax.training.fit` runs on batches of a shape, and measure their memory.

    No parameters are made, and nothing is computed.

    Args:
        module: from a query to scores.
        batch: for as many parts as the wrapper's ``num_parts``; its values do not matter.
        likelihood: its loss is minimised.
        optimizer: see :meth:`routerjax.training.AdamW.with_likelihood`.
        wrapper: how the steps run on devices.
        most_kept: bytes of a device; where a run keeps more than these, nothing is compiled.

    Raises:
        InputError: as :func:`routerjax.training.fit`.
    """
    ahead = _Ahead(wrapper)
    transformation = optimizer.with_likelihood(likelihood).transformation(NUM_STEPS)
    key = jax.random.key(0)
    state = create_state(module, batch.query, transformation, key=key, likelihood=likelihood, wrapper=ahead)
    gradients = ahead.zeros(gradient_shapes(state))
    parts = (state.variables, state.opt_state, gradients)
    parameters, moments, sums = (sum(map(_bytes_on_device, jax.tree.leaves(part))) for part in parts)
    temporaries = None
    if parameters + moments + sums <= most_kept:
        run = accumulating_step(module, likelihood, transformation, weight_per_step=WEIGHT_PER_STEP, wrapper=ahead)
        run(state, [wrapper.split(batch)], wrapper.put(key))
        temporaries = max(map(_temporary_bytes, ahead.programs))
    return StepMemory(state, parameters, moments, sums, temporaries)


class _Ahead(Wrapper):
    """Wrapper that compiles the programs of another one, and runs none: states are shapes with their shardings."""

    def __init__(self, wrapper: Wrapper) -> None:
        self.wrapper = wrapper
        self.programs: list[jax.stages.Compiled] = []

    @property
    def num_parts(self) -> int:
        return self.wrapper.num_parts

    def __call__(
        self, step: Callable[..., tuple[Carry, PyTree]], axes: tuple[PyTree, ...] = (None, 0, None)
    ) -> Callable[..., tuple[Carry, PyTree]]:
        def run(carry: Carry, *arguments: PyTree) -> tuple[Carry, PyTree]:
            program: Any = self.wrapper(step, axes)
            self.programs.append(program.lower(carry, *arguments).compile())
            return carry, {}

        return run

    def put(self, tree: PyTree, axis: int | None = None) -> PyTree:
        return self.wrapper.put(tree, axis)

    def zeros(self, tree: PyTree) -> PyTree:
        return self.wrapper.part_shapes(tree)

    def start(
        self,
        initialise: Callable[[], Variables],
        variables: Variables | None,
        begin: Callable[[Variables], StateT],
    ) -> StateT:
        del variables
        boxed = jax.eval_shape(lambda: begin(initialise()))
        shapes, places = nn.meta.unbox(boxed), self.wrapper.places(boxed)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
        )


def _bytes_on_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def _temporary_bytes(program: jax.stages.Compiled) -> int:
    """Bytes of a device beyond the arguments; results that take the place of arguments are none."""
    memory = cast(Any, program.memory_analysis())
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
