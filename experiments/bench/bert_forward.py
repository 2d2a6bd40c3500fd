"""Seconds of a forward of all-MiniLM-L6-v2, beside transformers' torch (sdpa) on the same machine.

    python experiments/bench/bert_forward.py

Needs the parity extra; float32, CPU. Each cell times the jitted encoder and the torch model in turn, so that whatever
else the machine does meets both; medians of 25 with quartiles, compilation and a first call left out. Every row has as
many tokens as the batch is long, which is torch's fastest case (without padding it drops the mask). The share of the
matmul rate is the forward's matmul FLOP/s as a part of what the faster of the two libraries reaches, in the same
run, on the matmuls of one layer's projections alone: 100% would be a forward that does nothing but multiply. Takes two
minutes on two idle cores. On a machine that others use the ratios flatter routerjax: torch's threads wait for one
another.
"""

import os
import time
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from routerjax.features import load_encoder
from routerjax.pretrained import MINILM, locate

# Batch x length.
CELLS = ((1, 64), (8, 64), (32, 64), (32, 128), (16, 256))
RUNS = 25


def alternate(calls: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Seconds of each call, ``[RUNS]``; the calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(RUNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
            # Threads of the one library that still wait for work must not slow the other.
            time.sleep(0.01)
    return {name: np.asarray(values) for name, values in seconds.items()}


def projections(tokens: int, width: int, mlp_dim: int) -> tuple[int, dict[str, Callable[[], object]]]:
    """FLOP of one layer's projections, and the call of each library that computes nothing else."""
    rng = np.random.default_rng(0)
    shapes = [(width, width)] * 4 + [(width, mlp_dim), (mlp_dim, width)]
    kernels = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    inputs = {size: rng.standard_normal((tokens, size), dtype=np.float32) for size in (width, mlp_dim)}
    own_kernels = [jnp.asarray(kernel) for kernel in kernels]
    own_inputs = {size: jnp.asarray(leaf) for size, leaf in inputs.items()}
    torch_kernels = [torch.tensor(kernel) for kernel in kernels]
    torch_inputs = {size: torch.tensor(leaf) for size, leaf in inputs.items()}
    product = jax.jit(lambda inputs, kernels: [inputs[kernel.shape[0]] @ kernel for kernel in kernels])
    flop = sum(2 * tokens * rows * columns for rows, columns in shapes)
    return flop, {
        "jax matmul": lambda: jax.block_until_ready(product(own_inputs, own_kernels)),
        "torch matmul": lambda: [torch_inputs[kernel.shape[0]] @ kernel for kernel in torch_kernels],
    }


def main() -> None:
    loaded = load_encoder(MINILM)
    encoder = loaded.module.encoder.clone(parent=None)
    variables = {"params": loaded.variables["params"]["encoder"]}
    forward = jax.jit(encoder.apply)
    model = transformers.AutoModel.from_pretrained(locate(MINILM), attn_implementation="sdpa").eval()
    rng = np.random.default_rng(0)
    print(f"{os.cpu_count()} CPU cores, jax {jax.__version__}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} torch threads; medians of {RUNS} in ms [quartiles]\n")
    print("| batch x length | routerjax | torch | times as fast | share of the matmul rate: routerjax | torch |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for batch, length in CELLS:
        token_ids = rng.integers(1000, encoder.vocab_size, (batch, length))
        query = {"token_ids": jnp.asarray(token_ids, jnp.int32), "attention_mask": jnp.ones((batch, length), jnp.int32)}
        inputs = {"input_ids": torch.tensor(token_ids), "attention_mask": torch.ones((batch, length), dtype=torch.long)}
        with torch.inference_mode():
            difference = np.abs(forward(variables, query) - model(**inputs).last_hidden_state.numpy()).max()
            if difference > 1e-4:
                raise SystemExit(f"at {batch} x {length} the hidden states differ by {difference:.1e}")
            layer_flop, matmuls = projections(batch * length, encoder.width, encoder.mlp_dim)
            seconds = alternate(
                {
                    "routerjax": lambda query=query: jax.block_until_ready(forward(variables, query)),
                    "torch": lambda inputs=inputs: model(**inputs),
                    **matmuls,
                }
            )
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        flop = encoder.num_layers * (layer_flop + 4 * batch * length**2 * encoder.width)
        rate = layer_flop / min(median[name] for name in matmuls)
        ratios.append(median["torch"] / median["routerjax"])
        times = []
        for name in ("routerjax", "torch"):
            low, middle, high = 1000 * np.quantile(seconds[name], (0.25, 0.5, 0.75))
            times.append(f"{middle:.1f} [{low:.1f}, {high:.1f}]")
        shares = [f"{flop / median[name] / rate:.0%}" for name in ("routerjax", "torch")]
        print(f"| {batch} x {length} | {' | '.join(times)} | {ratios[-1]:.2f} | {' | '.join(shares)} |", flush=True)
    print(f"\ngeometric mean: {np.exp(np.mean(np.log(ratios))):.2f} times as fast")


if __name__ == "__main__":
    main()
