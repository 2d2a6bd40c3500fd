"""Latency of a router of MiniLM and matrix factorisation from text: JAX, ONNX, one vector, and torch one at a time.

    python experiments/bench/serving_latency.py checkpoints/mf-minilm --torch TORCH_PYTHON --output FILE.md

Run it where the extra ``onnx`` is installed; ``TORCH_PYTHON`` is an interpreter that has torch and transformers, as
``.venv-parity`` has. Each side answers in processes of its own, which take turns, with as many threads as it likes.
Cold start is from the start of the process to its first answer, imports and compilation with it. The torch reference
tokenises, encodes and scores prompt by prompt, also where 32 come at once; one vector starts from embeddings, which
are not in its time. All sides must give the same win probabilities.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from routerjax import formats, load_router
from routerjax.config import FeatureConfig
from routerjax.data import simulate_arena
from routerjax.pretrained import locate

SIDES = {
    "JAX: router.win_prob": """
from routerjax import load_router
router = load_router(sys.argv[1], encoder=sys.argv[4])
answer = router.win_prob
""",
    "JAX: bundle stablehlo": "from routerjax_runtime import load\nanswer = load(sys.argv[2] + '/stablehlo').win_prob\n",
    "ONNX: bundle onnx": "from routerjax_runtime import load\nanswer = load(sys.argv[2] + '/onnx').win_prob\n",
    "ONNX: bundle onnx, int8": "from routerjax_runtime import load\nanswer = load(sys.argv[2] + '/int8').win_prob\n",
    "ONNX: int8, products too": """
from routerjax_runtime import load
answer = load(sys.argv[2] + '/products').win_prob
""",
    "numpy: bundle vector, from embeddings": """
import numpy as np
from routerjax_runtime import load
bundle = load(sys.argv[2] + '/vector')
embedding = dict(zip(prompts, np.load(sys.argv[2] + '/embedding.npy')))
answer = lambda texts: bundle.win_prob(embedding=np.stack([embedding[text] for text in texts]))
""",
    "torch, one at a time": """
import numpy as np, torch, transformers
folder, about = sys.argv[2] + '/vector', json.load(open(sys.argv[2] + '/vector/bundle.json'))
vector = torch.from_numpy(np.load(folder + '/vector.npy'))
tie, encoder = about['tie_threshold'], sys.argv[4]
tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
model = transformers.AutoModel.from_pretrained(encoder).eval()
@torch.inference_mode()
def one(text):
    read = tokenizer(text, return_tensors='pt', truncation=True, max_length=256)
    hidden = model(**read).last_hidden_state[0].mean(dim=0)
    margin = torch.nn.functional.normalize(hidden, dim=0) @ vector + about['bias']
    return 0.5 + 0.5 * (torch.sigmoid(margin - tie) - torch.sigmoid(-margin - tie)).item()
answer = lambda texts: [one(text) for text in texts]
""",
}
INT8 = ("int8", "products")
WORKER = """
import json, sys, time
prompts = json.load(open(sys.argv[3]))
{side}
first = list(map(float, answer(prompts[:1])))
print(time.time(), flush=True)
for size in (1, 32):  # each shape once before it is timed
    for start in range(0, len(prompts), size):
        answer(prompts[start:start + size])
seconds, win_prob = {{1: [], 32: []}}, []
for size in (1, 32):
    for start in range(0, len(prompts) - size + 1, size):
        began = time.perf_counter()
        result = answer(prompts[start:start + size])
        seconds[size].append(time.perf_counter() - began)
        win_prob += list(map(float, result)) if size == 1 else []
print(json.dumps({{"seconds": seconds, "win_prob": win_prob}}))
"""


def measure(side: str, python: str, arguments: list[str], bundles: Path) -> tuple[float, dict]:
    """Cold start in seconds, and what the process measured."""
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{bundles / 'onnx'}"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    began = time.time()
    command = [python, "-c", WORKER.format(side=SIDES[side]), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        raise SystemExit(f"{side}: {finished.stderr[-2000:]}")
    first, result = finished.stdout.splitlines()[-2:]
    return float(first) - began, json.loads(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router", type=Path)
    parser.add_argument("--torch", required=True, help="a Python that has torch and transformers")
    parser.add_argument("--prompts", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--note", default="", help="about the machine, for the page")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    router, encoder = load_router(arguments.router), str(locate(FeatureConfig.encoder))
    prompts = list(simulate_arena(num_prompts=arguments.prompts, num_test_prompts=1, seed=2).preferences.unique_prompts)
    prompts = (prompts * 2)[: arguments.prompts]
    with tempfile.TemporaryDirectory() as directory:
        bundles = Path(directory)
        for name, format, options in (
            ("stablehlo", "stablehlo", {}),
            ("onnx", "onnx", {}),
            ("int8", "onnx", {"weights": "int8"}),
            ("products", "onnx", {"weights": "int8", "activations": "int8"}),
            ("vector", "vector", {}),
        ):
            formats.export(router, bundles / name, format, options=options)
        np.save(bundles / "embedding.npy", router.featurizer.query(prompts)["embedding"])
        (bundles / "prompts.json").write_text(json.dumps(prompts))
        changes = {name: json.loads((bundles / name / "bundle.json").read_text())["int8"] for name in INT8}
        sizes = {
            name: sum(path.stat().st_size for path in (bundles / name).iterdir() if path.is_file()) / 1e6
            for name in ("stablehlo", "onnx", *INT8, "vector")
        }
        given = [str(arguments.router), directory, str(bundles / "prompts.json"), encoder]
        cold: dict[str, list[float]] = {side: [] for side in SIDES}
        seconds: dict[str, dict[str, list[float]]] = {side: {"1": [], "32": []} for side in SIDES}
        difference: dict[str, float] = {}
        expected = router.win_prob(prompts)
        for _ in range(arguments.rounds):
            for side in SIDES:
                python = arguments.torch if side.startswith("torch") else sys.executable
                started, result = measure(side, python, given, bundles)
                cold[side].append(started)
                difference[side] = float(np.abs(np.asarray(result["win_prob"]) - expected).max())
                for size, measured in result["seconds"].items():
                    seconds[side][size] += measured
    lines = [
        f"Measured on {datetime.date.today()} on {os.cpu_count()} CPU cores ({platform.machine()}){arguments.note}, by "
        f"`python experiments/bench/serving_latency.py {arguments.router} --torch TORCH_PYTHON --prompts "
        f"{arguments.prompts} --rounds {arguments.rounds} --output FILE.md`: {len(prompts)} prompts of the "
        f"simulated arena, {np.mean([len(prompt) for prompt in prompts]):.0f} characters on average, from text to "
        "win probability.",
        "",
        "| side | 1 prompt, p50 | p99 | 32 prompts, p50 | p99 | cold start | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for side in SIDES:
        cells = [f"{1000 * np.percentile(seconds[side][size], q):.2f} ms" for size in ("1", "32") for q in (50, 99)]
        lines.append(f"| {side} | {' | '.join(cells)} | {np.median(cold[side]):.1f} s | {difference[side]:.1e} |")
    torch = np.median(seconds["torch, one at a time"]["1"])
    ratios = {side: np.median(seconds[side]["1"]) / torch for side in SIDES if side.startswith("ONNX")}
    lines += [
        "",
        f"Of torch's median for one prompt: {', '.join(f'{side} {ratio:.2f}' for side, ratio in ratios.items())}. "
        "Bundles: " + ", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()) + ".",
        "",
        *(f"{name}, on the golden prompts: {json.dumps(change)}" for name, change in changes.items()),
        "",
    ]
    arguments.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
