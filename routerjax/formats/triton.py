"""A model repository of NVIDIA's Triton Inference Server, in a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from routerjax.formats.onnx_bundle import Onnx

REPOSITORY, LARGEST_BATCH = "model_repository", 64
TYPES: Mapping[int, str] = {1: "TYPE_FP32", 6: "TYPE_INT32"}  # of onnx.TensorProto
MODEL = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
{tensors}
dynamic_batching {{ }}
"""


@dataclass(frozen=True)
class Triton(Onnx):
    """The format ``onnx`` as a model repository, one model for each function."""

    name = "triton"

    def path(self, function: str) -> str:
        """Name of a function's file."""
        return f"{REPOSITORY}/{function}/1/model.onnx"

    def files(self, function: str, model: Any) -> dict[str, bytes]:
        """The model, and its ``config.pbtxt``."""
        tensors = [("input", each) for each in model.graph.input] + [("output", each) for each in model.graph.output]
        listed = "\n".join(_tensor(role, each) for role, each in tensors)
        config = MODEL.format(name=function, batch=LARGEST_BATCH, tensors=listed)
        return {**super().files(function, model), f"{REPOSITORY}/{function}/config.pbtxt": config.encode()}


def _tensor(role: str, tensor: Any) -> str:
    """Entry of an input or output, without its batch; Triton has no tensors without another size, but reshapes them."""
    sizes = [dim.dim_value or -1 for dim in tensor.type.tensor_type.shape.dim][1:]
    reshaped = "" if sizes else " reshape { shape: [ ] }"
    shape = ", ".join(map(str, sizes or [1]))
    kind = TYPES[tensor.type.tensor_type.elem_type]
    return f'{role} [ {{ name: "{tensor.name}" data_type: {kind} dims: [ {shape} ]{reshaped} }} ]'
