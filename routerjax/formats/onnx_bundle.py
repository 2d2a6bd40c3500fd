"""Bundles whose functions are ONNX, for onnxruntime and for Triton: no JAX where they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.errors import require_extra
from routerjax.features import TextFunction
from routerjax.formats import onnx_graph
from routerjax.formats.bundle import BundleFormat, Contents
from routerjax.formats.onnx_fusions import fuse
from routerjax.formats.onnx_int8 import quantize_products, quantize_weights
from routerjax.formats.scoring_functions import input_shapes
from routerjax.router import Router
from routerjax.runtime import onnx_function

TOLERANCE = 1e-5
"""Largest difference between the bundle and the router that is accepted in float32, of what is at most 1."""
MOST_BYTES = 2**31 - 2**24
"""Weights of the largest model that fits into one file of the format."""
# A bound is so many times the largest change on the golden prompts: others may change more. It is never smaller.
TIMES_LARGEST, SMALLEST_BOUND = 3.0, 1e-3


@dataclass(frozen=True)
class Onnx(BundleFormat):
    """A bundle that onnxruntime computes, from embeddings and from token ids with the encoder inside.

    Batch and length are dynamic; calibration and policy are in the functions.

    Attributes:
        weights: ``int8`` keeps matrices in 8 bits, with a float32 scale for each output; arithmetic stays float32.
        activations: ``int8``, beside weights of int8, multiplies integers, which takes a CPU about half the time; what
            is multiplied is rounded as it comes. The card tells by how much either changes the outputs.
    """

    name = "onnx"
    requirements = ("onnxruntime>=1.20", "numpy>=2.0", "tokenizers>=0.22")

    weights: Literal["float32", "int8"] = "float32"
    activations: Literal["float32", "int8"] = "float32"

    def require_form(self, router: Router) -> None:
        """Refuse a router that the format cannot hold, and to work without what converts it."""
        for package in ("jax2onnx", "onnxruntime"):
            require_extra("onnx", package, f"the format {self.name}")
        super().require_form(router)

    def unmet(self, router: Router) -> Iterator[str]:
        """Yield each reason."""
        text = router.featurizer.text_function()
        leaves = jax.tree.leaves((router.variables, {} if text is None else text.variables))
        if any(leaf.dtype == jnp.bfloat16 for leaf in leaves):
            yield f"{self.name} holds weights of float32, got bfloat16: export stablehlo, or train with float32"
        if sum(4 * leaf.size for leaf in leaves) > MOST_BYTES:
            yield f"a file of {self.name} holds 2 GB, and the weights are more: export stablehlo"
        if self.weights == "int8" and "memory" in router.variables:
            yield f"weights=int8 would round the battles that {router.family} compares prompts with: take float32"
        if self.activations == "int8" and self.weights != "int8":
            yield "activations=int8 goes with weights=int8: give both"

    def contents(self, router: Router, text: TextFunction | None, golden: Mapping[str, np.ndarray]) -> Contents:
        """Convert the functions."""
        models, shapes = {}, input_shapes(router, text)
        if "from_embedding" in shapes:
            models["from_embedding"] = onnx_graph.from_embedding(router)
        if text is not None:
            models["from_token_ids"] = onnx_graph.from_token_ids(router, text)
        models = {name: fuse(model) for name, model in models.items()}
        settings: dict[str, object] = {"weights": self.weights, "activations": self.activations}
        bound, notes = TOLERANCE, ()
        if self.activations == "int8":
            models = {name: quantize_products(model) for name, model in models.items()}
        if self.weights == "int8":
            models = {name: quantize_weights(model) for name, model in models.items()}
            settings["int8"], notes = _measured(models, shapes, golden)
            bound = cast(dict, settings["int8"])["bound"]
        files = {
            path: content
            for name, model in models.items()
            for path, content in self.files(name, cast(Any, model)).items()
        }
        functions = {name: {"file": self.path(name), "inputs": shapes[name]} for name in models}
        used = [*functions, *(["from_text"] if text is not None else [])]
        return Contents(
            files,
            functions,
            tolerance=dict.fromkeys(used, bound),
            needs={"onnx_opset": onnx_graph.OPSET, "onnx_ir": max(model.ir_version for model in models.values())},
            settings=settings,
            notes=(
                f"ONNX opset {onnx_graph.OPSET}, weights {self.weights}, activations {self.activations}",
                *notes,
            ),
        )

    def path(self, function: str) -> str:
        """Name of a function's file."""
        return f"{function}.onnx"

    def files(self, function: str, model: Any) -> dict[str, bytes]:
        """Files of a function, name -> content."""
        return {self.path(function): model.SerializeToString()}


def _measured(
    models: Mapping[str, Any], shapes: Mapping[str, Mapping[str, object]], golden: Mapping[str, np.ndarray]
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Change of outputs by rounding on the golden prompts: for ``bundle.json``, and lines of the card."""
    measured: dict[str, object] = {}
    largest, notes = 0.0, []
    for name, model in models.items():
        outputs = onnx_function(model.SerializeToString())({each: golden[each] for each in shapes[name]})
        for kind in sorted({"scores", "win_prob"} & set(golden)):
            change = np.abs(outputs[kind] - golden[kind])
            largest = max(largest, float(change.max()) / max(1.0, float(np.abs(golden[kind]).max())))
            measured[f"{name}.{kind}"] = {"largest": float(change.max()), "mean": float(change.mean())}
            notes.append(
                f"int8 changes {kind} {name} by at most {change.max():.1e} and by {change.mean():.1e} on average"
            )
    bound = max(TIMES_LARGEST * largest, SMALLEST_BOUND)
    return {**measured, "bound": bound}, (*notes, f"bound that is stated for int8: {bound:.1e}")
