"""Bundles whose functions are ONNX, for onnxruntime and for Triton: no JAX where they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.errors import require_extra
from routerjax.features import TextFunction
from routerjax.formats import onnx_graph
from routerjax.formats.bundle import BundleFormat, Contents
from routerjax.formats.onnx_changes import change_of_apgr, changes_of_outputs, require_gap
from routerjax.formats.onnx_fusions import fuse
from routerjax.formats.onnx_int8 import quantize_products, quantize_weights
from routerjax.formats.scoring_functions import input_shapes
from routerjax.router import Router

TOLERANCE = 1e-5
"""Largest difference between the bundle and the router that is accepted in float32, of what is at most 1."""
MOST_BYTES = 2**31 - 2**24
"""Weights of the largest model that fits into one file of the format."""


@dataclass(frozen=True)
class Onnx(BundleFormat):
    """A bundle that onnxruntime computes, from embeddings and from token ids with the encoder inside.

    Batch and length are dynamic; calibration and policy are in the functions.

    Attributes:
        weights: ``int8`` keeps matrices in 8 bits, with a float32 scale for each output; arithmetic stays float32.
        activations: ``int8``, beside weights of int8, multiplies integers, which takes a CPU less time; what
            is multiplied is rounded as it comes. The card tells by how much either changes the outputs.
        benchmark: table of scores on which the card tells by how much int8 changes APGR.
    """

    name = "onnx"
    requirements = ("onnxruntime>=1.20", "numpy>=2.0", "tokenizers>=0.22")

    weights: Literal["float32", "int8"] = "float32"
    activations: Literal["float32", "int8"] = "float32"
    benchmark: str | None = None

    def require_form(self, router: Router) -> None:
        """Refuse a router that the format cannot hold, and to work without what converts it."""
        for package in ("jax2onnx", "onnxruntime"):
            require_extra("onnx", package, f"the format {self.name}, in an environment of its own (README says which),")
        super().require_form(router)
        if self.benchmark is not None:  # a table that is none is refused before the work
            require_gap(router, self.benchmark)

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
        if self.benchmark is not None and (self.weights != "int8" or text is None or not router.has_pair):
            yield "benchmark=FILE is for the change of APGR by weights=int8, of a router of texts and of a pair"

    def contents(self, router: Router, text: TextFunction | None, golden: Mapping[str, np.ndarray]) -> Contents:
        """Convert the functions."""
        models, shapes = {}, input_shapes(router, text)
        if "from_embedding" in shapes:
            models["from_embedding"] = onnx_graph.from_embedding(router)
        if text is not None:
            models["from_token_ids"] = onnx_graph.from_token_ids(router, text)
        models = {name: fuse(model) for name, model in models.items()}
        settings: dict[str, object] = {"weights": self.weights, "activations": self.activations}
        bound: float = TOLERANCE
        notes: Sequence[str] = ()
        if self.activations == "int8":
            models = {name: quantize_products(model) for name, model in models.items()}
        if self.weights == "int8":
            models = {name: quantize_weights(model) for name, model in models.items()}
            changes = changes_of_outputs(models, shapes, golden)
            settings["int8"], bound, notes = changes.settings, changes.bound, changes.notes
        if self.benchmark is not None:
            of_text = models["from_token_ids"]
            settings["benchmark"], note = change_of_apgr(router, cast(TextFunction, text), of_text, self.benchmark)
            notes = (*notes, note)
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
