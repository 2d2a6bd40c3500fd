"""Time of a decoder's forward and of a step with low-rank adapters, beside transformers and peft in torch (sdpa).

    python experiments/bench/decoder.py FOLDER [--runs 7]

FOLDER holds a causal language model in Hugging Face's format, such as Gemma 3 270M. Needs the parity extra, peft and an
idle machine. Float32, every core, no padding, a linear head with two outputs on the last token; the step is forward,
backward and AdamW on adapters of rank 16 of every projection. The two take turns. Milliseconds are medians; a ratio is
torch's median over ours, so above 1 ours is faster. Compilation is left out. The last column is the rate of the matmuls
of our forward as a share of the rate that the machine reaches on gate projections alone, in the same rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
import transformers

from routerjax.families import CAUSAL, pretrained_variables
from routerjax.features import load_tokens
from routerjax.models import CausalRouter, Decoder

CELLS = ((1, 128), (8, 128), (4, 512))
RANK, RATE = 16, 1e-4
PRODUCTS = 18  # of which one is too short to be timed
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def alternate(runs: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each side, after one call that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(runs):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def router(folder: Path, **chosen: int) -> tuple[CausalRouter, dict]:
    featurizer = load_tokens(folder, max_length=512, chosen=chosen)
    module = CAUSAL.make_module(num_outputs=2, attributes={}, featurizer=featurizer)
    return module, jax.tree.map(jnp.asarray, pretrained_variables(module, folder, jax.random.key(0)))


def flops_per_token(decoder: Decoder) -> int:
    config = decoder.config
    heads = 2 * config.num_heads + 2 * config.num_key_heads
    return 2 * config.num_layers * config.width * (heads * config.head_dim + 3 * config.mlp_dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    module, variables = router(arguments.folder)
    forward = jax.jit(module.apply)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(arguments.folder, num_labels=2, attn_implementation="sdpa", dtype=torch.float32).eval()
    adapted, of_adapted = router(arguments.folder, lora_rank=RANK)
    optimizer = optax.adamw(RATE)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=16, target_modules=TARGETS)
    tuned = peft.get_peft_model(load(arguments.folder, num_labels=2, attn_implementation="sdpa"), config).train()
    of_torch = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=RATE)

    @jax.jit
    def step(params: dict, state: optax.OptState, query: dict) -> tuple[dict, optax.OptState]:
        def loss(params: dict) -> jax.Array:
            scores = adapted.apply({**of_adapted, "params": params}, query)
            return -jax.nn.log_softmax(scores)[:, 0].mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    width, wide = module.encoder.width, module.encoder.config.mlp_dim
    rng, ratios = np.random.default_rng(0), []
    print("| batch x length | forward, ours | torch | ratio | step, ours | torch | ratio | share of the matmul rate |")
    print("|---|---|---|---|---|---|---|---|")
    for batch, length in CELLS:
        ids = rng.integers(4, module.encoder.vocab_size - 2, (batch, length))
        query = {"token_ids": ids.astype(np.int32), "attention_mask": np.ones_like(ids, np.int32)}
        theirs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones_like(torch.from_numpy(ids))}
        left = rng.standard_normal((batch * length, width), np.float32)
        rights = list(rng.standard_normal((PRODUCTS, width, wide), np.float32))
        products = jax.jit(lambda left, rights: [left @ right for right in rights])

        def torch_forward(theirs: dict = theirs) -> None:
            with torch.inference_mode():
                model(**theirs)

        def torch_step(theirs: dict = theirs) -> None:
            of_torch.zero_grad()
            loss = -torch.log_softmax(tuned(**theirs).logits, dim=-1)[:, 0].mean()
            loss.backward()
            of_torch.step()

        params, state = of_adapted["params"], optimizer.init(of_adapted["params"])
        median = alternate(
            arguments.runs,
            ours=lambda query=query: jax.block_until_ready(forward(variables, query)),
            torch=torch_forward,
            our_step=lambda query=query, params=params, state=state: jax.block_until_ready(step(params, state, query)),
            torch_step=torch_step,
            matmul=lambda left=left, rights=rights, products=products: jax.block_until_ready(products(left, rights)),
        )
        ratios.append((median["torch"] / median["ours"], median["torch_step"] / median["our_step"]))
        rate = PRODUCTS * 2 * batch * length * width * wide / median["matmul"]
        share = flops_per_token(module.encoder) * batch * length / median["ours"] / rate
        forward_times, step_times = (
            f"{1000 * median[ours]:.0f} ms | {1000 * median[torch_side]:.0f} ms | {ratio:.2f}"
            for ours, torch_side, ratio in (("ours", "torch", ratios[-1][0]), ("our_step", "torch_step", ratios[-1][1]))
        )
        print(f"| {batch} x {length} | {forward_times} | {step_times} | {share:.2f} |", flush=True)
    means = np.exp(np.mean(np.log(ratios), axis=0))
    print(f"\nGeometric means: forward {means[0]:.2f}, step {means[1]:.2f}.")


if __name__ == "__main__":
    main()
