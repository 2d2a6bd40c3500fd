"""Sources of battles, and how an epoch's steps run on each kind: on the device, or streamed from the host."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.profiler import StepTraceAnnotation
from jaxtyping import Int, Int32

from routerjax import distributed
from routerjax.config import TrainingConfig
from routerjax.likelihoods import Likelihood
from routerjax.order import epoch_order
from routerjax.partitioning import require_divisible
from routerjax.training.parallel import Wrapper
from routerjax.training.prefetch import BATCHES_AHEAD, Prefetch
from routerjax.training.profile import STEP_NAME
from routerjax.training.state import TrainState
from routerjax.training.step import accumulating_step, loop_steps, make_train_step
from routerjax.typing import Array, BatchShape, PreferenceBatch

logger = logging.getLogger(__name__)

# One call of the program takes about so many steps that Ctrl-C and the progress bar wait no longer than this.
SECONDS_A_CALL = 0.5

StepRunner = Callable[[TrainState, int, int], Generator[tuple[TrainState, Mapping[str, np.ndarray]]]]
"""``(state, epoch, start) -> (state, metrics [steps]) ...``: an epoch from its ``start``-th step on, in parts of one or
more steps, each of which is finished when it is yielded. The state that was given may be donated. Metrics are those of
the step, and ``input_wait_seconds`` where the host makes the batches. Close it where it is not used up."""


class Battles(Protocol):
    """Battles of a training or validation set, wherever they lie."""

    @property
    def num_battles(self) -> int:
        """Battles of a pass."""
        ...

    @property
    def total_weight(self) -> float:
        """Sum of their weights."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts of a pass, without padding; 0 of embeddings."""
        ...

    @property
    def shapes(self) -> Sequence[BatchShape]:
        """Shapes of the training batches of a pass, whatever their order."""
        ...

    def in_order(self) -> Iterable[PreferenceBatch]:
        """Yield all battles once, for validation."""
        ...


class Batches(Battles, Protocol):
    """Battles that come in shuffled batches, such as :class:`routerjax.data.TokenBatches`."""

    def shuffled(
        self, *, seed: int, epoch: int, start: int = 0, parts: range | None = None
    ) -> Iterable[PreferenceBatch]:
        """The batches of an epoch from the ``start``-th on, a pure function of seed and epoch; few shapes.

        ``parts`` are the neighbouring parts of each batch that are wanted, of those that it has for the devices; their
        battles and queries alone, ``query_index`` counted among these. None is all of them.
        """
        ...

    def battles_of(self, *, seed: int, epoch: int, start: int, stop: int) -> Int[np.ndarray, "battles"]:
        """Indices of the battles of these batches, from ``start`` to before ``stop``."""
        ...


class Source(Battles, Protocol):
    """Battles, and how the steps of an epoch on them run."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps, the same in every epoch."""
        ...

    def battles_of(self, epoch: int, step: int) -> Int[np.ndarray, "battles"]:
        """Indices of the battles that a step learns from."""
        ...

    def runner(
        self, module: nn.Module, likelihood: Likelihood, optimizer: optax.GradientTransformation, key: Array
    ) -> StepRunner:
        """Compile the steps; ``key`` is of their noise."""
        ...


def open_source(battles: PreferenceBatch | Batches, training: TrainingConfig, wrapper: Wrapper) -> Source:
    """Place battles where they are trained on: all of a :class:`PreferenceBatch` on the devices, others as they come.

    Raises:
        InputError: the batch size does not divide over the devices.
    """
    if isinstance(battles, PreferenceBatch):
        return _Resident(wrapper.put(battles), training, wrapper)
    return _Streamed(battles, training, wrapper)


def steps_per_epoch(battles: PreferenceBatch | Batches, training: TrainingConfig) -> int:
    """Number of steps of an epoch on these battles, wherever they lie."""
    if isinstance(battles, PreferenceBatch):
        return -(-len(battles.query_index) // training.batch_size)
    return -(-battles.num_batches // training.micro_batches)


@dataclass(frozen=True)
class _Resident:
    """Battles on the device, of which any number of steps is one program."""

    batch: PreferenceBatch
    training: TrainingConfig
    wrapper: Wrapper

    def __post_init__(self) -> None:
        require_divisible(self.training.batch_size, self.wrapper.num_parts)

    @property
    def num_batches(self) -> int:
        return 1

    @property
    def num_battles(self) -> int:
        return self.batch.query_index.shape[0]

    @property
    def total_weight(self) -> float:
        return float(np.asarray(self.batch.weight).sum(dtype=np.float64))

    @property
    def num_tokens(self) -> int:
        mask = self.batch.query.get("attention_mask")
        return 0 if mask is None else int(np.asarray(mask).sum(axis=1)[np.asarray(self.batch.query_index)].sum())

    @property
    def shapes(self) -> list[BatchShape]:
        token_ids = self.batch.query.get("token_ids")
        return [BatchShape(self.batch_size, 1 if token_ids is None else token_ids.shape[1], self.steps_per_epoch)]

    @property
    def batch_size(self) -> int:
        """Battles of a step: more than all battles would be padding, which is computed in vain."""
        parts = self.wrapper.num_parts
        return min(self.training.batch_size, -(-self.num_battles // parts) * parts)

    def in_order(self) -> list[PreferenceBatch]:
        return [self.batch]

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.batch, self.training)

    def battles_of(self, epoch: int, step: int) -> Int[np.ndarray, "battles"]:
        battles = self._order(epoch)[step]
        return battles[battles >= 0]

    def _order(self, epoch: int) -> Int32[np.ndarray, "steps batch"]:
        seed = self.training.order_seed
        return epoch_order(seed=seed, epoch=epoch, num_battles=self.num_battles, batch_size=self.batch_size)

    def runner(
        self, module: nn.Module, likelihood: Likelihood, optimizer: optax.GradientTransformation, key: Array
    ) -> StepRunner:
        num_steps, training, wrapper = self.steps_per_epoch, self.training, self.wrapper
        if self.batch_size < training.batch_size:
            logger.info(
                "training.batch_size %d is beyond the %d battles: a step takes them all",
                *(training.batch_size, self.num_battles),
            )
        weight = self.total_weight / num_steps
        # Battles and the first and last step are all devices', the order is split.
        skips = training.non_finite == "skip"
        step = make_train_step(module, likelihood, optimizer, weight_per_step=weight, skip_non_finite=skips)
        run = wrapper(loop_steps(step), (None, (None, 1, None, None), None))
        count, profiled = 1, training.profiled_steps
        bounds = (profiled.start, profiled.stop) if profiled else ()

        def run_steps(state: TrainState, epoch: int, start: int) -> Generator[tuple[TrainState, dict[str, np.ndarray]]]:
            nonlocal count
            order = wrapper.put(self._order(epoch), 1)
            while start < num_steps:
                # A trace begins and ends between two calls.
                ends = [end - epoch * num_steps for end in bounds]
                stop = min(start + count, num_steps, *(end for end in ends if end > start))
                began = time.perf_counter()
                with StepTraceAnnotation(STEP_NAME, step_num=epoch * num_steps + start):
                    state, metrics = run(state, (self.batch, order, np.int32(start), np.int32(stop)), key)
                    metrics = jax.device_get(metrics)
                yield state, {name: leaf[start:stop] for name, leaf in metrics.items()}
                # Of process 0: all take the same steps together.
                seconds = float(distributed.of_first(str(time.perf_counter() - began)))
                if seconds > SECONDS_A_CALL:
                    count = max(1, count // 2)
                elif seconds < SECONDS_A_CALL / 2:
                    count = min(2 * count, num_steps)
                start = stop

        return run_steps


@dataclass(frozen=True)
class _Streamed:
    """Battles that come from the host, ``training.micro_batches`` of their batches a step, whatever their shapes.

    They are made and sent to the devices in the background. The last step of an epoch has what is left.
    """

    batches: Batches
    training: TrainingConfig
    wrapper: Wrapper

    @property
    def num_batches(self) -> int:
        return self.batches.num_batches

    @property
    def num_battles(self) -> int:
        return self.batches.num_battles

    @property
    def total_weight(self) -> float:
        return self.batches.total_weight

    @property
    def num_tokens(self) -> int:
        return self.batches.num_tokens

    @property
    def shapes(self) -> Sequence[BatchShape]:
        return self.batches.shapes

    def in_order(self) -> Iterable[PreferenceBatch]:
        return self.batches.in_order()

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.batches, self.training)

    def battles_of(self, epoch: int, step: int) -> Int[np.ndarray, "battles"]:
        start, count = step * self.training.micro_batches, self.training.micro_batches
        return self.batches.battles_of(seed=self.training.order_seed, epoch=epoch, start=start, stop=start + count)

    def runner(
        self, module: nn.Module, likelihood: Likelihood, optimizer: optax.GradientTransformation, key: Array
    ) -> StepRunner:
        training, weight = self.training, self.total_weight / self.steps_per_epoch
        run = accumulating_step(
            module,
            likelihood,
            optimizer,
            weight_per_step=weight,
            wrapper=self.wrapper,
            skip_non_finite=training.non_finite == "skip",
        )

        def run_steps(state: TrainState, epoch: int, start: int) -> Generator[tuple[TrainState, dict[str, np.ndarray]]]:
            first = start * training.micro_batches
            parts = self.wrapper.local_parts
            batches = self.batches.shuffled(seed=training.order_seed, epoch=epoch, start=first, parts=parts)
            number = itertools.count(epoch * self.steps_per_epoch + start)
            with Prefetch((self.wrapper.split(batch) for batch in batches), ahead=BATCHES_AHEAD) as placed:
                waited = 0.0
                for batch in placed:
                    step = itertools.chain([batch], itertools.islice(placed, training.micro_batches - 1))
                    with StepTraceAnnotation(STEP_NAME, step_num=next(number)):
                        state, metrics = run(state, step, key)
                        metrics = jax.device_get(metrics)
                    on_host = {name: np.asarray(value)[None] for name, value in metrics.items()}
                    yield state, on_host | {"input_wait_seconds": np.asarray([placed.seconds - waited])}
                    waited = placed.seconds

        return run_steps
