"""The training state, and where it starts."""

from __future__ import annotations

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from routerjax.errors import InputError
from routerjax.likelihoods import BRADLEY_TERRY, COLLECTION, Likelihood
from routerjax.scoring import apply_module, mode, needs_named
from routerjax.training.parallel import Wrapper, jit_step
from routerjax.typing import Array, PyTree, Query, Variables


class TrainState(flax.struct.PyTreeNode):
    """State that a step reads and writes: plain arrays, never stacked over devices.

    Attributes:
        step: int32 scalar, steps taken.
        trained: collections that are optimised: the module's ``params``, and the ``likelihood``'s if it has any.
        fixed: the module's other collections, such as a memory.
        opt_state: the optimiser's own.
    """

    step: Array
    trained: Variables
    fixed: Variables
    opt_state: PyTree

    @property
    def variables(self) -> Variables:
        """All collections."""
        return {**self.fixed, **self.trained}


def noise_streams(key: Array) -> dict[str, Array]:
    """Keys of the streams of random numbers that a module has in training."""
    dropout, noise = jax.random.split(key)
    return {"dropout": dropout, "noise": noise}


def create_state(
    module: nn.Module,
    example: Query,
    optimizer: optax.GradientTransformation,
    *,
    key: Array,
    likelihood: Likelihood = BRADLEY_TERRY,
    variables: Variables | None = None,
    wrapper: Wrapper = jit_step,
) -> TrainState:
    """Initialise the variables for queries of the shape of ``example``, or start from given ones.

    Args:
        module: from a query to scores; may have any collections.
        example: a query of at least one row; its values do not matter.
        optimizer: of ``{"params": ..., "likelihood": ...}``, the latter where the likelihood has parameters.
        key: of the parameters.
        likelihood: whose own parameters, if it has any, are trained with the module's.
        variables: to start from, such as pretrained ones: all of the module's; they are copied.
        wrapper: places the state on its devices.

    Raises:
        InputError: the module has no parameters, needs what it is not given, or returns no scores.
    """
    example = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape[1:]), leaf.dtype), dict(example))
    rngs = noise_streams(key)

    def initialise() -> Variables:
        with needs_named(module, {}, rngs):
            return module.init({"params": key, **rngs}, example, **mode(module, deterministic=True))

    def begin(variables: Variables) -> TrainState:
        trained = {"params": variables.get("params", {})}
        if not jax.tree.leaves(trained):
            raise InputError(f"{type(module).__name__} has no parameters: there is nothing to train")
        initial = likelihood.initial_params()
        trained |= {COLLECTION: variables.get(COLLECTION, initial)} if initial else {}
        fixed = {name: collection for name, collection in variables.items() if name not in trained}
        return TrainState(jnp.zeros((), jnp.int32), trained, fixed, optimizer.init(trained))

    state = wrapper.start(initialise, variables, begin)
    for way in ({"rngs": rngs, "deterministic": False}, {}):
        scores = jax.eval_shape(
            functools.partial(apply_module, module, query=example, **way), variables=state.variables
        )
        if getattr(scores, "ndim", 0) != 2:
            shape = getattr(scores, "shape", None)
            raise InputError(f"{type(module).__name__} must return scores [batch, outputs], got shape {shape}")
    return state
