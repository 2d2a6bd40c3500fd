"""Scoring functions as ONNX models, by jax2onnx."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.extend
import jax.numpy as jnp

from routerjax.errors import InputError
from routerjax.features import TextFunction
from routerjax.router import Router
from routerjax.typing import Array

if TYPE_CHECKING:
    Model = Any  # onnx.ModelProto, of an extra
else:
    Model = object

logger = logging.getLogger(__name__)

OPSET = 21
ROW = "row_"


def from_embedding(router: Router) -> Model:
    """``embedding`` float32 [batch, embed] -> the outputs of :meth:`Router.output_fn`, with a symbolic batch.

    A family whose operations jax2onnx converts for a known batch alone is converted for one row, and looped over.
    """
    compute, names = router.output_fn(), output_names(router)

    def outputs(embedding: Array) -> dict[str, Array]:
        return compute(router.variables, {"embedding": embedding})

    width = router.featurizer.width
    try:
        (batch,) = jax.export.symbolic_shape("batch")
        return _convert(outputs, {"embedding": _shape((batch, width), jnp.float32)}, names)
    except jax.errors.InconclusiveDimensionOperation:
        logger.info("%s is computed row by row: jax2onnx converts it for a known batch", router.family)
    return _over_rows(_convert(outputs, {"embedding": _shape((1, width), jnp.float32)}, names), width)


def from_token_ids(router: Router, text: TextFunction) -> Model:
    """``token_ids`` and ``attention_mask`` int32 [batch, length] -> the outputs, encoder and router as one function."""
    compute = router.output_fn()

    def outputs(token_ids: Array, attention_mask: Array) -> dict[str, Array]:
        return compute(router.variables, query(token_ids, attention_mask))

    def query(token_ids: Array, attention_mask: Array) -> dict[str, Array]:
        tokens = {"token_ids": token_ids, "attention_mask": attention_mask}
        return dict(text.apply(text.variables, tokens))

    shape = jax.export.symbolic_shape("batch, length", constraints=(f"length <= {text.tokenizer.max_length}",))
    tokens = {name: _shape(shape, jnp.int32) for name in ("token_ids", "attention_mask")}
    try:
        return _convert(outputs, tokens, output_names(router))
    except jax.errors.InconclusiveDimensionOperation:
        if "embedding" not in router.featurizer.example():
            raise
    from onnx import compose  # pyright: ignore[reportMissingImports] (an extra)

    joined = compose.merge_models(
        _convert(query, tokens, ["encoded"]), from_embedding(router), io_map=[("encoded", "embedding")]
    )
    joined.graph.name = "router"
    return joined


def output_names(router: Router) -> list[str]:
    """Names of the outputs of :meth:`Router.output_fn`, in the order in which JAX flattens them."""
    shapes = jax.eval_shape(router.output_fn(), router.variables, router.featurizer.example())
    return sorted(shapes)


def copy_of(model: Model) -> Model:
    """Copy a model."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def remove_unused(graph: Any) -> None:
    """Remove nodes and constants that no output needs."""
    used, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if used & set(node.output):
            kept.append(type(node).FromString(node.SerializeToString()))
            used.update(_inputs(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _inputs(node: Any) -> Iterator[str]:
    """Names that a node takes, and those that the graphs within it take from around it."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _inputs(inner)


def _shape(shape: Sequence[Any], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _convert(function: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct], outputs: Sequence[str]) -> Model:
    """Convert a function to an ONNX model with these names.

    It is traced to JAX's primitives first: jax2onnx replaces functions of jax.numpy while it traces, and its own have
    no symbolic sizes everywhere.
    """
    import jax2onnx  # pyright: ignore[reportMissingImports] (an extra)

    shapes = list(inputs.values())
    primitives = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(function)(*shapes))
    with _silent("onnx_ir", "jax2onnx"):
        try:
            return jax2onnx.to_onnx(
                lambda *arrays: primitives(*arrays),
                shapes,
                model_name="router",
                opset=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
            )
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:  # jax2onnx's: all else is traced
            reason = (str(error).splitlines() or ["no message"])[0]
            raise InputError(f"jax2onnx does not convert this router under jax {jax.__version__}: {reason}") from error


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Silence loggers that warn of what is left out of a model's annotations, which nothing reads."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _over_rows(one: Model, width: int) -> Model:
    """Model of any batch from that of one row, by ONNX's ``Scan``."""
    from onnx import TensorProto, compose, helper  # pyright: ignore[reportMissingImports] (an extra)

    # Names of the loop's body are none of the graph around it.
    body = compose.add_prefix(one, ROW).graph
    first = helper.make_tensor(f"{ROW}first", TensorProto.INT64, [1], [0])
    body.initializer.append(first)
    whole = body.input[0].name
    body.node.insert(0, helper.make_node("Unsqueeze", [f"{ROW}one", first.name], [whole]))
    body.input[0].CopyFrom(helper.make_tensor_value_info(f"{ROW}one", TensorProto.FLOAT, [width]))
    outputs = []
    for place, output in enumerate(one.graph.output):
        kind, sizes = output.type.tensor_type.elem_type, [dim.dim_value for dim in output.type.tensor_type.shape.dim]
        body.node.append(helper.make_node("Squeeze", [f"{ROW}{output.name}", first.name], [f"{ROW}{output.name}_one"]))
        body.output[place].CopyFrom(helper.make_tensor_value_info(f"{ROW}{output.name}_one", kind, sizes[1:]))
        outputs.append(helper.make_tensor_value_info(output.name, kind, ["batch", *sizes[1:]]))
    names = [output.name for output in outputs]
    loop = helper.make_node("Scan", ["embedding"], names, body=body, num_scan_inputs=1)
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph([loop], "router", [embedding], outputs)
    return helper.make_model(graph, opset_imports=one.opset_import, ir_version=one.ir_version)
