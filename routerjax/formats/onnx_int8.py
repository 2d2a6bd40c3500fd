"""ONNX models in int8: weights alone, or the products of matrices too."""

from __future__ import annotations

from typing import Any

import numpy as np

from routerjax.formats.onnx_graph import Model, copy_of, remove_unused

FEWEST = 256
"""Numbers of the smallest matrix that is kept in int8."""
LARGEST_WEIGHT, LARGEST_FACTOR = 127, 64
"""Largest integers of weights alone, and of factors of products: x86 without VNNI adds pairs of those in 16 bits."""


def quantize_weights(model: Model) -> Model:
    """Copy with each matrix of weights in int8, and a scale for each of its outputs, or of a table's rows.

    ``weight ~ scale * int8``; the arithmetic stays float32.
    """
    from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports] (an extra)

    quantized = copy_of(model)
    graph = quantized.graph
    by_row = {node.input[0] for node in graph.node if node.op_type == "Gather" and not _attribute(node, "axis", 0)}
    by_row |= {node.input[1] for node in graph.node if node.op_type == "Gemm" and _is_transposed(node)}
    nodes = []
    for tensor in list(graph.initializer):
        weight = numpy_helper.to_array(tensor)
        if weight.dtype != np.float32 or weight.ndim < 2 or weight.size < FEWEST:
            continue
        axis = 0 if tensor.name in by_row else weight.ndim - 1
        rounded, scale = _rounded(weight, axis, LARGEST_WEIGHT)
        names = f"{tensor.name}_int8", f"{tensor.name}_scale"
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(rounded, names[0]))
        graph.initializer.append(numpy_helper.from_array(scale, names[1]))
        nodes.append(helper.make_node("DequantizeLinear", list(names), [tensor.name], axis=axis))
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    return quantized


def quantize_products(model: Model) -> Model:
    """Copy in which products with a matrix of weights are of integers.

    Of ``x @ weight``, the weight is int8 with a scale for each output, and x is rounded to 8 bits as it comes, with one
    scale for all of it (dynamic quantization), so that a prompt's outputs depend a little on those of its batch. The
    sums are exact: all hardware gives the same ones.
    """
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports] (an extra)

    quantized = copy_of(model)
    graph = quantized.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    rounded_inputs: dict[str, list[str]] = {}
    nodes = []
    for node in graph.node:
        if not _is_product(node) or not _is_matrix(weights.get(node.input[1])):
            nodes.append(node)
            continue
        (result,), name = node.output, node.output[0]
        given, weight = node.input[0], numpy_helper.to_array(weights[node.input[1]])
        if node.op_type == "Gemm" and _is_transposed(node):
            weight = np.ascontiguousarray(weight.T)
        rounded, scale = _rounded(weight, 1, LARGEST_FACTOR)
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_weight"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_weight_scale"))
        if given not in rounded_inputs:
            rounded_inputs[given] = [f"{given}_given", f"{given}_given_scale", f"{given}_given_zero"]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [given], rounded_inputs[given]))
        integers, factor, zero = rounded_inputs[given]
        biases = [each for each in node.input[2:] if each and _attribute(node, "beta", 1.0)]
        product = f"{name}_product" if biases else result
        nodes += [
            helper.make_node("MatMulInteger", [integers, f"{name}_weight", zero], [f"{name}_sum"]),
            helper.make_node("Cast", [f"{name}_sum"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [factor, f"{name}_weight_scale"], [f"{name}_sum_scale"]),
            helper.make_node("Mul", [f"{name}_float", f"{name}_sum_scale"], [product]),
            *(helper.make_node("Add", [product, bias], [result]) for bias in biases),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused(graph)
    return quantized


def _rounded(weight: np.ndarray, axis: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers of at most ``largest``, and the float32 scale of each index of an axis."""
    others = tuple(place for place in range(weight.ndim) if place != axis)
    scale = np.maximum(np.abs(weight).max(axis=others) / largest, np.finfo(np.float32).tiny).astype(np.float32)
    return np.round(weight / np.expand_dims(scale, others)).astype(np.int8), scale


def _is_product(node: Any) -> bool:
    if node.op_type == "Gemm":
        factors = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
        return not _attribute(node, "transA", 0) and factors in ((1.0, 1.0), (1.0, 0.0))
    return node.op_type == "MatMul"


def _is_matrix(tensor: Any) -> bool:
    from onnx import TensorProto  # pyright: ignore[reportMissingImports] (an extra)

    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return False
    return len(tensor.dims) == 2 and np.prod(tensor.dims) >= FEWEST


def _is_transposed(node: Any) -> bool:
    return bool(_attribute(node, "transB", 0))


def _attribute(node: Any, name: str, default: float) -> float:
    from onnx import helper  # pyright: ignore[reportMissingImports] (an extra)

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
