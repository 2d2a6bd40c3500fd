"""Time of all-MiniLM-L6-v2's forward, beside transformers' torch implementation with its sdpa attention.

    python experiments/bench/bert_forward.py [--runs 15]

Needs the parity extra and an idle machine. Token ids to hidden states, float32, no padding (for which transformers
leaves its mask out), every core. The two take turns, each first in every second round, and pause in between, so that
neither runs beside the other's waiting threads. Milliseconds are medians with quartiles; the ratio is torch's median
over ours, so above 1 ours is faster. The last column is the rate of all matmuls in our forward as a share of the rate
that the machine reaches on the layers' projections alone, at the same shapes and in the same rounds, by JAX or torch,
whichever is faster. Takes two minutes on two idle cores.
"""

import argparse
import functools
import operator
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from routerjax import models
from routerjax.features import load_encoder
from routerjax.pretrained import MINILM, locate

CELLS = ((1, 64), (8, 64), (32, 64), (32, 128), (16, 256))
PAUSE = 0.05  # seconds; far above what OpenMP's threads spin for
TOLERANCE = 1e-4  # of the hidden states


def seconds(run: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(contenders: dict[str, Callable[[], object]], runs: int) -> dict[str, np.ndarray]:
    """Quartiles of each contender's milliseconds, after two rounds that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 2):
        order = list(contenders) if turn % 2 else list(contenders)[::-1]
        for name in order:
            taken[name].append(seconds(contenders[name]))
    return {name: 1000.0 * np.percentile(times[2:], [25, 50, 75]) for name, times in taken.items()}


def projections(encoder: models.BertEncoder) -> list[tuple[int, int]]:
    """(in, out) of the kernels of all layers; each takes what the one before gives."""
    width, mlp = encoder.width, encoder.mlp_dim
    return ([(width, width)] * 4 + [(width, mlp), (mlp, width)]) * encoder.num_layers


def matmul_contenders(shapes: list[tuple[int, int]], tokens: int) -> dict[str, Callable[[], object]]:
    """The projections alone, one after the other."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((tokens, shapes[0][0]), np.float32)
    kernels = [rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5) for shape in shapes]
    hidden_jax, kernels_jax = jax.tree.map(jnp.asarray, (hidden, kernels))
    hidden_torch, kernels_torch = torch.from_numpy(hidden), [torch.from_numpy(kernel) for kernel in kernels]
    multiply = jax.jit(lambda hidden, kernels: functools.reduce(operator.matmul, kernels, hidden))
    return {
        "jax matmul": lambda: multiply(hidden_jax, kernels_jax).block_until_ready(),
        "torch matmul": lambda: functools.reduce(operator.matmul, kernels_torch, hidden_torch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed rounds a cell")
    runs = parser.parse_args().runs
    loaded = load_encoder(MINILM)
    encoder = loaded.module.encoder
    variables = {"params": loaded.variables["params"]["encoder"]}
    forward = jax.jit(functools.partial(encoder.apply, variables))
    reference = transformers.AutoModel.from_pretrained(locate(MINILM), attn_implementation="sdpa").eval()
    shapes = projections(encoder)
    print(
        f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), transformers "
        f"{transformers.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {runs} rounds a cell\n"
    )
    print("| batch x length | routerjax ms | torch ms | ratio | share of the matmul rate |")
    print("|---|---|---|---|---|")
    ratios = []
    for batch, length in CELLS:
        token_ids = np.random.default_rng(0).integers(1000, encoder.vocab_size, (batch, length))
        query = {"token_ids": jnp.asarray(token_ids, jnp.int32), "attention_mask": jnp.ones((batch, length), jnp.int32)}
        tensors = {
            "input_ids": torch.from_numpy(token_ids),
            "attention_mask": torch.ones(batch, length, dtype=torch.long),
        }

        def ours(query: dict[str, jax.Array] = query) -> jax.Array:
            return forward(query).block_until_ready()

        @torch.inference_mode()
        def theirs(tensors: dict[str, torch.Tensor] = tensors) -> torch.Tensor:
            return reference(**tensors).last_hidden_state

        difference = float(np.abs(np.asarray(ours()) - theirs().numpy()).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"{batch} x {length}: hidden states differ by {difference:.1e}")
        contenders = {"ours": ours, "torch": theirs, **matmul_contenders(shapes, batch * length)}
        taken = alternate(contenders, runs)
        ratios.append(taken["torch"][1] / taken["ours"][1])
        projected = 2 * batch * length * sum(rows * columns for rows, columns in shapes)
        attention = encoder.num_layers * 2 * 2 * batch * length * length * encoder.width
        machine_rate = projected / min(taken["jax matmul"][1], taken["torch matmul"][1])
        share = (projected + attention) / taken["ours"][1] / machine_rate
        times = [f"{middle:.1f} ({low:.1f}-{high:.1f})" for low, middle, high in (taken["ours"], taken["torch"])]
        print(f"| {batch} x {length} | {times[0]} | {times[1]} | {ratios[-1]:.2f} | {share:.0%} |", flush=True)
    print(f"\nGeometric mean of the ratios: {np.exp(np.mean(np.log(ratios))):.2f}")


if __name__ == "__main__":
    main()
