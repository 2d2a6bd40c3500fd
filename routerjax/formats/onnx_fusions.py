"""Operations of transformers that ONNX has as one, put in the place of the many that JAX writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from routerjax.formats.onnx_graph import Model, copy_of, remove_unused

# Operations that change the shape of a tensor and no number in it.
SHAPES = ("Reshape", "Expand", "Unsqueeze", "Identity")


def fuse(model: Model) -> Model:
    """Copy in which each layer normalisation and each GELU is ONNX's; the same outputs up to rounding.

    jax2onnx writes them as a dozen operations, with shapes of broadcasts that are computed whenever the model runs,
    which takes as long as the matrix products of a short prompt. What does not look exactly so stays as it is.
    """
    fused = copy_of(model)
    finders: tuple[Finder, ...] = (_gelu, _layer_norm)
    for find in finders:
        graph = _Graph(fused)
        for last, node in [pair for pair in (find(graph, start) for start in graph.nodes) if pair is not None]:
            last.CopyFrom(node)
        remove_unused(fused.graph)
    return fused


class _Graph:
    """Nodes of a model by the tensors that they make and take."""

    def __init__(self, model: Model) -> None:
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports] (an extra)

        self.nodes = list(model.graph.node)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.takers: dict[str, list[Any]] = {}
        for node in (node for node in self.nodes if node.op_type != "Shape"):  # which takes no number
            for name in dict.fromkeys(node.input):
                self.takers.setdefault(name, []).append(node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.outputs = {output.name for output in model.graph.output}
        described = (*model.graph.input, *model.graph.output, *model.graph.value_info)
        # Sizes that are known, 0 for those that are not.
        self.sizes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in described}
        self.sizes |= {name: list(value.shape) for name, value in self.constants.items()}

    def number(self, name: str) -> float | None:
        """Value of a constant of one number."""
        value = self.constants.get(self.source(name))
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def source(self, name: str) -> str:
        """Tensor that operations on shapes alone made another one of."""
        while (node := self.maker.get(name)) is not None and node.op_type in SHAPES:
            name = node.input[0]
        return name

    def made_by(self, name: str, kind: str, *, through_shapes: bool = False) -> Any | None:
        """Node of a kind that makes a tensor."""
        node = self.maker.get(self.source(name) if through_shapes else name)
        return node if node is not None and node.op_type == kind else None

    def only_taker(self, name: str, kind: str) -> Any | None:
        """The one node that takes a tensor, operations on shapes left out; None unless it is of a kind."""
        while len(takers := self.takers.get(name, ())) == 1 and name not in self.outputs:
            if takers[0].op_type == kind:
                return takers[0]
            if takers[0].op_type not in SHAPES:
                return None
            name = takers[0].output[0]
        return None

    def is_over_last(self, node: Any, name: str) -> bool:
        """Say if a node reduces a tensor over its last axis alone."""
        axes = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and axes.tolist() in ([-1], [len(self.sizes.get(name, ())) - 1])

    def are_alike(self, one: str, other: str) -> bool:
        """Say if two tensors have as many axes, and no sizes that are known to differ."""
        sizes, others = self.sizes.get(one), self.sizes.get(other)
        if sizes is None or others is None or len(sizes) != len(others):
            return False
        return all(a == b or not a or not b for a, b in zip(sizes, others, strict=True))

    def is_column(self, name: str, other: str) -> bool:
        """Say if a tensor has one number for each row of another one, which has as many axes."""
        return self.sizes.get(name, [0])[-1:] == [1] and len(self.sizes[name]) == len(self.sizes.get(other, ()))

    def other(self, node: Any, name: str) -> str:
        """Input of a node of two that is not made of a tensor by operations on shapes alone."""
        first, second = node.input
        return second if self.source(first) == self.source(name) else first


Finder = Callable[[_Graph, Any], tuple[Any, Any] | None]
"""Find what starts at a node: the last node of it, and the one that takes its place."""


def _gelu(graph: _Graph, erf: Any) -> tuple[Any, Any] | None:
    """``0.5 x (1 + erf(x / sqrt 2))``, with or without the bound below which it is 0."""
    scaled = graph.made_by(erf.input[0], "Mul") if erf.op_type == "Erf" else None
    if scaled is None:
        return None
    x = next((name for name in scaled.input if graph.number(name) is None), "")
    plus_one = graph.only_taker(erf.output[0], "Add")
    if plus_one is None or not _is(graph.number(graph.other(scaled, x)), math.sqrt(0.5)):
        return None
    product = graph.only_taker(plus_one.output[0], "Mul")
    if product is None or not _is(graph.number(graph.other(plus_one, erf.output[0])), 1.0):
        return None
    half = graph.made_by(graph.other(product, plus_one.output[0]), "Mul")
    if half is None or x not in half.input or not _is(graph.number(graph.other(half, x)), 0.5):
        return None
    last = graph.only_taker(product.output[0], "Where")
    if last is not None:
        below = graph.made_by(last.input[0], "Less")
        is_bound = below is not None and below.input[0] == x and (graph.number(below.input[1]) or 0.0) <= -6.0
        if not is_bound or graph.number(last.input[1]) != 0.0 or last.input[2] != product.output[0]:
            return None
    last = product if last is None else last
    return _replaced(last, "Gelu", [x]) if graph.are_alike(x, last.output[0]) else None


def _layer_norm(graph: _Graph, square: Any) -> tuple[Any, Any] | None:
    """``(x - mean) * (scale / sqrt(mean of (x - mean)^2 + epsilon)) + bias`` over the last axis."""
    centred = graph.made_by(square.input[0], "Sub") if square.op_type == "ReduceSumSquare" else None
    if centred is None:
        return None
    x = centred.input[0]
    chain: list[Any] = [square]
    for kind in ("Div", "Add", "Sqrt", "Div", "Mul", "Mul", "Add"):
        chain.append(graph.only_taker(chain[-1].output[0], kind))
        if chain[-1] is None:
            return None
    _, mean_square, stable, _, inverse, scaled, product, last = chain
    width, epsilon = _mean_of(graph, centred.input[1], x), graph.number(graph.other(stable, mean_square.output[0]))
    again = graph.made_by(graph.other(product, scaled.output[0]), "Sub")
    if width is None or epsilon is None or again is None or again.input[0] != x:
        return None
    if {_mean_of(graph, again.input[1], x), graph.number(mean_square.input[1])} != {width}:
        return None
    if graph.number(inverse.input[0]) != 1.0 or not graph.is_over_last(square, x):
        return None
    inverses = graph.other(scaled, graph.other(scaled, inverse.output[0]))
    if not all(graph.is_column(name, x) for name in (centred.input[1], again.input[1], inverses)):
        return None
    given = [graph.other(node, name) for node, name in ((scaled, inverse.output[0]), (last, product.output[0]))]
    scale, bias = map(graph.source, given)
    if any(graph.sizes.get(name, [0])[-1:] != [width] for name in (*given, scale, bias)):
        return None
    if len(graph.sizes[scale]) != 1 or len(graph.sizes[bias]) != 1 or not graph.are_alike(x, last.output[0]):
        return None
    return _replaced(last, "LayerNormalization", [x, scale, bias], axis=-1, epsilon=epsilon)


def _mean_of(graph: _Graph, name: str, x: str) -> float | None:
    """Number of elements over which a tensor is the mean of another one, along its last axis; None if it is not."""
    mean = graph.made_by(name, "Div", through_shapes=True)
    if mean is None:
        return None
    total = graph.made_by(mean.input[0], "ReduceSum", through_shapes=True)
    is_sum = total is not None and total.input[0] == x and graph.is_over_last(total, x)
    return graph.number(mean.input[1]) if is_sum else None


def _is(number: float | None, wanted: float) -> bool:
    return number is not None and math.isclose(number, wanted, rel_tol=1e-6)


def _replaced(last: Any, kind: str, inputs: Sequence[str], **attributes: float) -> tuple[Any, Any]:
    from onnx import helper  # pyright: ignore[reportMissingImports] (an extra)

    return last, helper.make_node(kind, list(inputs), list(last.output), **attributes)
