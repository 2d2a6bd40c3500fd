"""Throughput of decoders on one GPU, with plain attention and with cuDNN's, as a table.

    python experiments/bench/gpu.py [--runs 10] [--peak-tflops 989]

The sizes are those of published models, the weights are random. Rows are full: no padding. bfloat16 compute; frozen
weights in bfloat16, trained ones in float32, activations computed again in the backward pass. Times are medians of runs
after the first; compilation is reported apart. Model FLOPs utilisation (MFU) is the operations of the matmuls of
forward and backward, without what is computed again, over the peak of the device: 989 TFLOP/s of an H100 or H200 (SXM)
in bfloat16.
"""

import argparse
import dataclasses
import datetime
import gc
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from routerjax import models, training
from routerjax.likelihoods import BRADLEY_TERRY
from routerjax.typing import PreferenceBatch, PyTree

BFLOAT16 = jnp.dtype("bfloat16")
GEMMA_270M = models.DecoderConfig(
    model_type="gemma3_text", vocab_size=262144, width=640, num_layers=18, num_heads=4, num_key_heads=1, head_dim=256,
    mlp_dim=2048, max_positions=32768, activation="gelu_tanh", norm_offset=1.0, sandwich_norms=True, qk_norm=True,
    scale_embeddings=True, attention_scale=1 / 16, windows=(512, 512, 512, 512, 512, 0) * 3, rope_base=1e6,
    rope_local_base=1e4, dtype=BFLOAT16,
)  # fmt: skip
LLAMA_1B = models.DecoderConfig(
    model_type="llama", vocab_size=128256, width=2048, num_layers=16, num_heads=32, num_key_heads=8, head_dim=64,
    mlp_dim=8192, max_positions=131072, attention_scale=1 / 8, windows=(0,) * 16, rope_base=5e5,
    rope_scaling=(32.0, 1.0, 4.0, 8192.0), dtype=BFLOAT16,
)  # fmt: skip
LLAMA_8B = dataclasses.replace(
    LLAMA_1B, width=4096, num_layers=32, head_dim=128, mlp_dim=14336, attention_scale=128**-0.5, windows=(0,) * 32
)
ADAPTERS = {"lora_rank": 16, "param_dtype": BFLOAT16, "remat": True}
CASES: tuple[tuple[str, models.DecoderConfig, str, int, int], ...] = (
    ("Gemma 3 270M", GEMMA_270M, "score", 64, 256),
    ("Gemma 3 270M", GEMMA_270M, "adapters", 64, 256),
    ("Llama 3.2 1B", LLAMA_1B, "score", 16, 1024),
    ("Llama 3.2 1B", LLAMA_1B, "all", 16, 1024),
    ("Llama 3 8B", LLAMA_8B, "adapters", 4, 2048),
)


def random_variables(module: nn.Module, query: PyTree) -> PyTree:
    """Random weights made on the device, one leaf at a time."""
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), query))
    leaves, structure = jax.tree.flatten(shapes)
    normal = jax.jit(jax.random.normal, static_argnums=(1, 2))
    made = [
        normal(jax.random.key(i), leaf.shape, leaf.dtype) * jnp.asarray(0.02, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, made)


def timed(run: Callable[[], object], runs: int) -> tuple[float, float]:
    """``(seconds of the first call, median seconds of the others)``."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


def measure(config: models.DecoderConfig, work: str, rows: int, length: int, runs: int) -> tuple[float, float, int]:
    """``(seconds to compile, seconds, FLOPs)`` of scoring, or of a step of adapters or of all parameters."""
    if work == "adapters":
        config = dataclasses.replace(config, **ADAPTERS)
    elif work == "all":
        config = dataclasses.replace(config, remat=True)
    else:
        config = dataclasses.replace(config, param_dtype=BFLOAT16)
    module = models.CausalRouter(models.Decoder(config), num_models=2)
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (rows, length), dtype=np.int32)
    query = jax.device_put({"token_ids": ids, "attention_mask": np.ones_like(ids)})
    variables = random_variables(module, query)
    fixed = {name: leaf for name, leaf in variables.items() if name != "params"}
    flops = models.training_flops(module.encoder, {"params": variables["params"]}, fixed, rows=rows, length=length)
    if work == "score":
        score = jax.jit(module.apply)
        first, seconds = timed(lambda: score(variables, query), runs)
        return first - seconds, seconds, flops.forward
    optimizer = optax.adamw(1e-5)
    wins = np.tile(np.asarray([[1, 0, 0]], np.float32), (rows, 1))
    place = np.arange(rows, dtype=np.int32)
    battles = PreferenceBatch(query, place, 0 * place, 0 * place + 1, wins, np.ones(rows, np.float32))
    step = jax.jit(
        training.make_train_step(module, BRADLEY_TERRY, optimizer, weight_per_step=float(rows)), donate_argnums=0
    )
    state = training.create_state(module, query, optimizer, key=jax.random.key(0), variables=variables)

    def run() -> object:
        nonlocal state
        state, metrics = step(state, battles, jax.random.key(1))
        return metrics

    first, seconds = timed(run, runs)
    return first - seconds, seconds, flops.forward + flops.backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"Measured on {datetime.date.today()} on one {device.device_kind}, jax {jax.__version__}, by "
        "`experiments/bench/gpu.py`.\n\n"
        "| model | work | batch x length | attention | ms | tokens a second | TFLOP/s | MFU | compile, s |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name, config, work, rows, length in CASES:
        for attention in ("plain", "cudnn"):
            chosen = dataclasses.replace(config, attention=attention)
            try:
                compile_seconds, seconds, flops = measure(chosen, work, rows, length, arguments.runs)
                rate = flops / seconds / 1e12
                times = f"{1000 * seconds:.1f} | {rows * length / seconds:,.0f}"
                figures = f"{times} | {rate:.0f} | {rate / arguments.peak_tflops:.2f} | {compile_seconds:.0f}"
            except jax.errors.JaxRuntimeError as error:  # such as a device that is too small
                figures = f"{str(error).splitlines()[0][:60]} | | | |"
            print(f"| {name} | {work} | {rows} x {length} | {attention} | {figures} |", flush=True)
            gc.collect()
    print(
        "\nscore: the forward pass of a router; adapters: a step of rank 16 on every projection; all: a step of all "
        "parameters with AdamW."
    )


if __name__ == "__main__":
    main()
