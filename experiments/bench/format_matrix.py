"""Families x formats: what a bundle gives where routerjax cannot be imported, beside its router, on 50 prompts.

    python experiments/bench/format_matrix.py --output experiments/results/formats.md

Run it where the extra ``onnx`` is installed. The routers are tiny ones of random weights that read text; the cells, the
prompts, the nine thresholds and the costs are those of ``tests/formats/matrix.py``, which ``make onnx`` tests.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

import jax

from routerjax import InputError, Router
from tests.formats.matrix import FAMILIES, cost_aware, differences, make_router

FORMATS = {
    "stablehlo": {},
    "onnx": {},
    "onnx, int8": {"weights": "int8"},
    "onnx, int8 products": {"weights": "int8", "activations": "int8"},
    "triton": {},
    "vector": {},
}
OF_COSTS = ("stablehlo", "onnx", "triton")


def cell(router: Router, folder: Path, format: str, options: dict[str, str]) -> str:
    try:
        largest_of = differences(router, folder, format.partition(",")[0], options)
    except InputError as error:
        return f"refused: {error}"
    largest = max(largest_of.get(name, 0.0) for name in ("win_prob", "scores"))
    return f"{largest:.1e} (at most {largest_of['tolerance']:.0e}), {largest_of['decisions']} other decisions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    lines = [
        f"Measured on {datetime.date.today()} by `python experiments/bench/format_matrix.py --output FILE.md`, jax "
        f"{jax.__version__}, on the CPU: largest difference of win probabilities and of scores (over the largest, "
        "where that is above 1) between a bundle and its router on 50 prompts, and decisions that differ at nine "
        "thresholds and the stored one; a row with costs counts those of a cost-aware policy. The bundle answers in a "
        "process where routerjax cannot be imported, nor jax for ONNX and Triton's models, nor onnxruntime and "
        "tokenizers for a vector.",
        "",
        f"| family | {' | '.join(FORMATS)} |",
        f"|---|{'---|' * len(FORMATS)}",
    ]
    with tempfile.TemporaryDirectory() as directory:
        for family in FAMILIES:
            router = make_router(family, Path(directory) / family)
            for name, each in ((family, router), (f"{family}, costs", cost_aware(router))):
                formats = {key: FORMATS[key] for key in (FORMATS if name == family else OF_COSTS)}
                cells = {
                    key: cell(each, Path(directory) / f"{name}_{key}".replace(", ", "_"), key, options)
                    for key, options in formats.items()
                }
                lines.append(f"| {name} | {' | '.join(cells.get(key, '') for key in FORMATS)} |")
                print(lines[-1], flush=True)
                arguments.output.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
