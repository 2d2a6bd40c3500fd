"""Measure steps on 1 to 8 host devices and in 1 to 4 processes, and plan those of 8 and 64 accelerators.

    python experiments/bench/scaling.py --output experiments/results/scaling.md

The work is the same in every row: 64 battles on prompts of 64 tokens, by a BERT of 2 layers of width 128 (pmap) and a
decoder of that size (mesh, fully sharded). Bytes are those that a device sends in the collectives of the compiled step,
by the ring algorithms. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from processes import free_port

from routerjax import distributed, models, partitioning, training
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.typing import PreferenceBatch

ROWS, LENGTH, NUM_MODELS, STEPS = 64, 64, 4, 20
ITEM_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "f16": 2, "u16": 2}
# Share of what a ring of n devices sends: of the result of a gather or a reduction, of the argument of a scatter.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
# H100 SXM, by NVIDIA's data sheet: NVLink in one direction; and of a host with 400 Gb/s InfiniBand for each GPU.
PEAK_FLOPS, NVLINK, INFINIBAND = 989.5e12, 450e9, 50e9
# Of Llama 3 8B, see results/gpu.md.
UTILISATION = 0.42

NOTES = (
    "All devices share the two cores: the table shows what dividing the work costs, and not what it gains. One process",
    "computes with both cores on one device already. With more devices each collective waits for a thread of each;",
    "between processes it goes through sockets (Gloo). Bytes are of the program, and the same on accelerators,",
    "except that XLA's compiler for CPU sums whole arrays where those for accelerators scatter the sum.",
)
PLANNED = (
    "Llama 3 8B, all of its parameters trained in float32 on a mesh of H100s, a row of 2,048 tokens a device",
    "([plan.md](plan.md)). The share of the peak is an H200's ([gpu.md](gpu.md)). Bytes are by their ratio to the",
    "parameters' bytes in the program of a small decoder with `remat` on 8 devices. Links are at their rated speed,",
    "InfiniBand for all bytes where there are 8 hosts. A step takes the longer of the two where they overlap, and",
    "their sum where they do not.",
)


def bert() -> nn.Module:
    """Router of the first kind."""
    encoder = models.BertEncoder(
        vocab_size=1000, width=128, num_layers=2, num_heads=4, mlp_dim=512, max_positions=LENGTH
    )
    return models.BertRouter(encoder, num_models=NUM_MODELS, head="mean")


def causal(remat: bool = False) -> nn.Module:
    """Router of the second kind; each layer is compiled by itself, so that a program's text has all collectives."""
    config = models.DecoderConfig(
        model_type="qwen3", vocab_size=1000, width=128, num_layers=2, num_heads=8, num_key_heads=8, head_dim=16,
        mlp_dim=512, max_positions=LENGTH, qk_norm=True, attention_scale=0.25, windows=(0, 0), added_tokens=8,
        unroll=2, remat=remat,
    )  # fmt: skip
    return models.CausalRouter(models.Decoder(config), NUM_MODELS)


def battles(rows: int) -> PreferenceBatch:
    """Random battles of so many prompts, one on each."""
    rng = np.random.default_rng(0)
    model_a = rng.integers(NUM_MODELS, size=rows).astype(np.int32)
    query: Any = {
        "token_ids": rng.integers(1000, size=(rows, LENGTH)).astype(np.int32),
        "attention_mask": np.ones((rows, LENGTH), np.int32),
    }
    return PreferenceBatch(
        query=query,
        query_index=np.arange(rows, dtype=np.int32),
        model_a=model_a,
        model_b=(model_a + 1) % NUM_MODELS,
        outcome=np.eye(3, dtype=np.float32)[rng.integers(3, size=rows)],
        weight=np.ones(rows, np.float32),
    )


def sent_bytes(program: str, devices: int) -> dict[str, float]:
    """Bytes that a device sends in a program's collectives, by their kind."""
    sent: dict[str, float] = {}
    for shapes, kind in re.findall(rf" = (.*?) ({'|'.join(SENT)})(?:-start)?\(", program):
        for name, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = math.prod(int(size) for size in sizes.split(",") if size) * ITEM_BYTES[name]
            sent[kind] = sent.get(kind, 0.0) + size * SENT[kind](devices)
    return sent


def make_step(module: nn.Module, wrapper: training.Wrapper, rows: int) -> tuple[Any, list[Any]]:
    """Make a step, which is compiled when it is called, and its arguments."""
    optimizer = optax.adamw(1e-4)
    example = {"token_ids": np.ones((1, LENGTH), np.int32), "attention_mask": np.ones((1, LENGTH), np.int32)}
    state = training.create_state(module, example, optimizer, key=jax.random.key(0), wrapper=wrapper)
    step = wrapper(training.make_train_step(module, BRADLEY_TERRY, optimizer, weight_per_step=float(rows)))
    arguments = [state, wrapper.split(battles(rows)), wrapper.put(jax.random.key(1))]
    return step, arguments


def measure(kind: str) -> None:
    """Print the seconds of a step on all devices, and what it moves, as JSON."""
    wrapper = training.pmap_step if kind == "bert" else training.mesh_step(partitioning.make_mesh())
    count = jax.device_count()
    share = len(wrapper.local_parts) * ROWS // wrapper.num_parts
    module = bert() if kind == "bert" else causal()
    step, arguments = make_step(module, wrapper, share)
    program = step.lower(*arguments).compile().as_text()
    state, *rest = arguments
    seconds = []
    for _ in range(STEPS + 3):
        began = time.perf_counter()
        state, metrics = step(state, *rest)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    if distributed.is_first():
        figures = {"seconds": statistics.median(seconds[3:]), "bytes": sum(sent_bytes(program, count).values())}
        print("FIGURES " + json.dumps(figures), flush=True)


def run(kind: str, processes: int, devices: int) -> dict[str, float]:
    """Measure in so many new processes, which have so many devices together."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--measure", kind, str(devices // processes), address, str(processes), str(n)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    (line,) = (line for line in outputs[0].splitlines() if line.startswith("FIGURES "))
    return json.loads(line.removeprefix("FIGURES "))


def gathers() -> dict[str, float]:
    """Bytes that a fully sharded step with remat sends on 8 devices, by kind, over the bytes of its parameters."""
    jax.config.update("jax_num_cpu_devices", 8)
    module = causal(remat=True)
    step, arguments = make_step(module, training.mesh_step(partitioning.make_mesh()), 8)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(arguments[0].trained))
    return {kind: value / size for kind, value in sent_bytes(step.lower(*arguments).compile().as_text(), 8).items()}


def planned(per_parameter: dict[str, float]) -> list[str]:
    """Rows of Llama 3 8B, each device with one row of 2,048 tokens a step (results/plan.md), on H100s."""
    lines = []
    parameters, flops = 7_504_932_866, 8.97e14 / 8
    # XLA's compiler for CPU leaves a sum whole where those for accelerators scatter it: half of what it sends.
    share = sum(value / (2 if kind == "all-reduce" else 1) for kind, value in per_parameter.items())
    for devices, rate, link in ((8, NVLINK, "NVLink"), (64, INFINIBAND, "InfiniBand")):
        sent = share * parameters * 4 * ((devices - 1) / devices) / (7 / 8)
        compute, move = flops / (PEAK_FLOPS * UTILISATION), sent / rate
        lines.append(
            f"| {devices} | {compute:.2f} s | {sent / 1e9:.0f} GB by {link}: {move:.2f} s | "
            f"{max(compute, move):.2f} to {compute + move:.2f} s | {devices / (compute + move):.0f} to "
            f"{devices / max(compute, move):.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="tables, as Markdown")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, local, address, processes, index = arguments.measure
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(local))
        if int(processes) > 1:
            distributed.join(address, int(processes), int(index))
        measure(kind)
        distributed.leave()
        return
    lines = ["| router | processes | devices | ms a step | battles/s | kB that a device sends a step |"]
    lines.append("|---|---|---|---|---|---|")
    for kind, name in (("bert", "BERT, pmap"), ("causal", "decoder, mesh")):
        for processes, devices in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8)):
            figures = run(kind, processes, devices)
            seconds = figures["seconds"]
            lines.append(
                f"| {name} | {processes} | {devices} | {1000 * seconds:.0f} | {ROWS / seconds:,.0f} | "
                f"{figures['bytes'] / 1000:,.0f} |"
            )
            print(lines[-1], flush=True)
    per_parameter = gathers()
    ratios = ", ".join(f"{kind} {value:.2f}" for kind, value in sorted(per_parameter.items()))
    plan = ["| H100s | operations | bytes that a device sends | a step | battles/s |", "|---|---|---|---|---|"]
    plan += planned(per_parameter)
    text = [
        "# Steps on more devices",
        "",
        f"`python experiments/bench/scaling.py`, {datetime.date.today()}, {os.cpu_count()} CPU cores, jax "
        f"{jax.__version__}; medians of {STEPS} steps, compilation apart.",
        "",
        *lines,
        "",
        *NOTES,
        "",
        "## Planned, not measured",
        "",
        *PLANNED,
        f"The bytes over those of the parameters, by kind: {ratios}. Operations are at {UTILISATION:.0%} of the peak.",
        "",
        *plan,
        "",
        "On 64 the links decide. More rows a device, parameters in bfloat16, or LoRA on a frozen base move less.",
        "",
    ]
    print("\n".join(text))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(text))


if __name__ == "__main__":
    main()
