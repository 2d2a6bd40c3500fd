"""Process that :mod:`routerjax.pipeline.plan` starts, in which JAX has as many devices as the plan is for."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np

from routerjax import training
from routerjax.config import ExperimentConfig, override
from routerjax.data import Preferences, TokenBatches
from routerjax.errors import InputError
from routerjax.families import find_family
from routerjax.features import TokenFeaturizer, open_featurizer
from routerjax.likelihoods import make_likelihood
from routerjax.models import WHOSE_CHOICES, Decoder, require_cudnn
from routerjax.pipeline.config_file import load_config
from routerjax.pipeline.train import typed_config
from routerjax.typing import PreferenceBatch, PyTree

ADAPTER_RANK = 16
MOST_MICRO_BATCHES = 1024


class _Planned:
    """A configuration, and the memory that its run keeps on each device."""

    def __init__(self, config: ExperimentConfig, *, most_kept: float = math.inf) -> None:
        self.config = config = typed_config(config)
        likelihood = make_likelihood(config.router.loss, readout=config.router.readout)
        family = find_family(config.router.family)
        family.require_likelihood(likelihood)
        if not (family.reads_text or config.features.train_encoder):
            raise InputError(
                f"{family.name} learns from embeddings, and fits wherever they do: a plan is of routers that train an "
                "encoder (bert, causal, or features.train_encoder)"
            )
        featurizer = open_featurizer(config.features, root=Path(config.data.root), embeds=not family.reads_text)
        assert isinstance(featurizer, TokenFeaturizer)
        # Battles are not read: how many models they name changes next to nothing.
        models = (config.router.strong, config.router.weak)
        module = family.make_module(
            num_outputs=len(likelihood.output_names(models)), attributes=config.router.attributes, featurizer=featurizer
        )
        self.encoder, self.module, self.wrapper = featurizer.encoder, module, training.wrapper_of(config.training)
        self.batch = _longest_batch(config, featurizer, self.wrapper.num_parts, likelihood.num_outcomes)
        variables = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), featurizer.example()))
        self.memory = training.step_memory(
            module,
            self.batch,
            likelihood=likelihood,
            optimizer=training.AdamW(config.optimizer, family.parameter_groups(variables["params"])),
            wrapper=self.wrapper,
            most_kept=most_kept,
        )


def _longest_batch(config: ExperimentConfig, featurizer: TokenFeaturizer, parts: int, outcomes: int) -> PreferenceBatch:
    """A batch of prompts of the full length, which takes the most memory: attention grows with the square of it."""
    length = featurizer.max_length
    rows = max(1, config.training.batch_tokens // length) * parts
    index = np.arange(rows, dtype=np.int32)
    outcome = np.zeros((rows, outcomes), np.float32)
    outcome[:, 0] = 1.0
    battles = Preferences(
        unique_prompts=tuple(map(str, index)),
        prompt_index=index,
        model_a=np.zeros(rows, np.int32),
        model_b=np.ones(rows, np.int32),
        outcome=outcome,
        weight=np.ones(rows, np.float32),
        models=(config.router.strong, config.router.weak),
    )
    batches = TokenBatches(
        battles,
        [np.zeros(length, np.int32)] * rows,
        lengths=featurizer.tokenizer.lengths,
        batch_tokens=config.training.batch_tokens,
        num_devices=parts,
    )
    return next(batches.in_order())


def _alternatives(planned: _Planned, count: int) -> Iterator[list[str]]:
    """Settings that take less memory: first those that leave what is learned as it is, then the others."""
    config, encoder, chosen = planned.config, planned.encoder, planned.config.features.encoder_attributes
    run = config.training
    kept: list[str] = []
    if count > 1 and run.devices != "mesh":
        kept.append("training.devices=mesh")
        yield kept
    length, batch_tokens, micro_batches = config.features.max_length, run.batch_tokens, run.micro_batches
    if 2 * length <= batch_tokens <= length * MOST_MICRO_BATCHES // micro_batches:
        micro_batches *= batch_tokens // length
        kept = [*kept, f"training.batch_tokens={length}", f"training.micro_batches={micro_batches}"]
        yield kept
    if not chosen.get("remat", False):
        kept = [*kept, "features.encoder_attributes.remat=True"]
        yield kept

    def on_more_devices() -> Iterator[list[str]]:
        """More devices share a prompt's work; the battles of a step stay as many."""
        times = 2
        while count % (times * run.model_devices) == 0 and times * micro_batches <= MOST_MICRO_BATCHES:
            number = times * run.model_devices
            yield [f"training.model_devices={number}", f"training.micro_batches={times * micro_batches}"]
            times *= 2

    shared = list(on_more_devices()) if count > 1 else []
    for more in shared:
        yield [*kept, *more]
    if chosen.get("dtype") != "bfloat16":
        kept = [*kept, "features.encoder_attributes.dtype=bfloat16"]
        yield kept
    moments = [] if config.optimizer.moments_dtype == "bfloat16" else ["optimizer.moments_dtype=bfloat16"]
    if moments:
        yield [*kept, *moments]
    if not isinstance(encoder, Decoder):
        return
    if chosen.get("param_dtype") != "bfloat16":
        kept = [*kept, "features.encoder_attributes.param_dtype=bfloat16"]
        yield [*kept, *moments]
    if not encoder.config.lora_rank:  # of which there are few moments
        kept = [*kept, f"features.encoder_attributes.lora_rank={min(ADAPTER_RANK, encoder.width)}"]
        yield kept
    for more in shared:
        yield [*kept, *more]


def plan_here(config: ExperimentConfig, limit: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Plan a run on as many devices as JAX has in this process; see :func:`routerjax.pipeline.plan_run`.

    Args:
        config: of the run.
        limit: bytes of each device.
        say: is told what is compiled.

    Raises:
        InputError: as :func:`routerjax.pipeline.plan_run`.
    """
    count = jax.device_count()
    on_gpus = config.features.encoder_attributes.get("attention") == "cudnn"
    if on_gpus:
        say("attention=cudnn is compiled for GPUs alone: planned with plain attention, whose temporaries are larger")
        config = override(config, ["features.encoder_attributes.attention=plain"])
    say(f"compiling a step for {count} device(s), without weights")
    planned = _Planned(config)
    if on_gpus and isinstance(planned.encoder, Decoder):
        require_cudnn(planned.encoder.config, WHOSE_CHOICES)
    memory, run = planned.memory, planned.config.training
    assert memory.total is not None
    rows, length = planned.batch.query["token_ids"].shape
    trained, frozen = memory.state.trained, memory.state.fixed
    flops = cast(Any, planned.module).training_flops(trained, frozen, rows=rows, length=length)
    tried: list[dict[str, Any]] = []
    for assignments in _alternatives(planned, count) if memory.total > limit else ():
        say(f"it does not fit; trying --set {' '.join(assignments)}")
        other = _Planned(override(config, assignments), most_kept=limit).memory
        fits = other.total is not None and other.total <= limit
        tried.append({"set": assignments, "kept": other.kept, "total": other.total, "fits": fits})
        if fits:
            break
    used = 1 if run.devices == "jit" else count
    sizes = ("parameters", "moments", "gradients", "temporaries", "total")
    return {
        "router": f"{planned.config.router.family} on {planned.encoder.model_type}",
        "wrapper": run.devices,
        "devices": {"count": count, "used": used, "memory": limit},
        "step": {"prompts": rows * run.micro_batches, "length": length, "micro_batches": run.micro_batches},
        "parameters": {"trained": _count(trained), "frozen": _count(frozen)},
        "bytes": {name: getattr(memory, name) for name in sizes},
        "flops": {name: value * run.micro_batches for name, value in flops._asdict().items()},
        "fits": memory.total <= limit,
        "tried": tried,
        "would_fit": tried[-1]["set"] if tried and tried[-1]["fits"] else None,
    }


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def main() -> None:
    """Answer, as JSON lines on standard output, the question that is the only argument."""
    # What a configuration prints must not come between the lines.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    question = json.loads(sys.argv[1])
    try:
        config = override(load_config(question["config"]), question["set"])
        answer(plan=plan_here(config, question["memory"], lambda message: answer(log=message)))
    except InputError as error:
        answer(error=str(error))
    except KeyboardInterrupt:  # which the process that asked is told, too
        sys.exit(130)


if __name__ == "__main__":
    main()
