"""Memory of the host while a decoder's weights go from sharded files onto a mesh of eight host devices.

    python experiments/bench/sharded_loading.py [--width 1024] [--layers 30]

It writes random float32 weights of a Llama in 8 files, 2 GB of them, starts the training of adapters on them, and
samples the process's anonymous memory every 10 ms. The devices are the host's own memory, which must therefore grow by
the model, and should by little more: less than one and a half files. Takes a minute.
"""

import argparse
import json
import os
import tempfile
import threading
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import safetensors.numpy
from processes import anonymous_bytes

from routerjax import models, training
from routerjax.config import OptimizerConfig
from routerjax.families import pretrained_variables
from routerjax.partitioning import make_mesh
from routerjax.pretrained import read_encoder

NUM_FILES, VOCAB = 8, 2048
MEGABYTE = 2**20


def save(folder: Path, width: int, layers: int) -> int:
    """Write the files, and return the bytes of all tensors."""
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "head_dim": 64, "max_position_embeddings": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    square, wide = (width, width), (4 * width, width)
    projections = {f"self_attn.{name}_proj": square for name in "qkvo"}
    projections |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": wide[::-1]}
    norms = dict.fromkeys(["input_layernorm", "post_attention_layernorm"], (width,))
    shapes = {"model.embed_tokens.weight": (VOCAB, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in {**projections, **norms}.items()}
    rng, files = np.random.default_rng(0), {}
    for number in range(NUM_FILES):
        names = list(shapes)[number::NUM_FILES]
        file = f"model-{number}.safetensors"
        tensors = {name: rng.standard_normal(shapes[name], dtype=np.float32) for name in names}
        safetensors.numpy.save_file(tensors, folder / file)
        files |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return sum(4 * int(np.prod(shape)) for shape in shapes.values())


def start(folder: Path) -> training.TrainState:
    """Place the weights, frozen, and adapters to be trained."""
    config = models.DecoderConfig(**{**read_encoder(folder), "lora_rank": 8})
    module = models.CausalRouter(models.Decoder(config), num_models=2)
    variables = pretrained_variables(module, folder, jax.random.key(0))
    example = {name: np.zeros((1, 8), np.int32) for name in ("token_ids", "attention_mask")}
    return training.create_state(
        module,
        example,
        training.AdamW(OptimizerConfig(learning_rate=1e-3)).transformation(10),
        key=jax.random.key(1),
        variables=variables,
        wrapper=training.mesh_step(make_mesh()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, whose memory cannot be used again by this one.
        if (child := os.fork()) == 0:
            size = save(Path(folder, "model"), args.width, args.layers)
            Path(folder, "size").write_text(str(size))
            save(Path(folder, "small"), 64, args.layers)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit("the model could not be written")
        size = int(Path(folder, "size").read_text())
        jax.block_until_ready(start(Path(folder, "small")))  # what compilers and libraries take
        before, samples, done = anonymous_bytes(), [], threading.Event()

        def sample() -> None:
            while not done.wait(0.01):
                samples.append(anonymous_bytes())

        sampler = threading.Thread(target=sample)
        sampler.start()
        state = jax.block_until_ready(start(Path(folder, "model")))
        done.set()
        sampler.join()
    table = state.fixed["memory"]["encoder"]["token_embedding"]
    figures = {
        "model": size,
        "growth": max(samples) - before,
        "bound": size + 1.5 * size / NUM_FILES,
        "a device's part of the token table": table.addressable_shards[0].data.nbytes / table.nbytes,
    }
    print(json.dumps({name: round(value / MEGABYTE if value > 1 else value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
