"""ONNX bundles of all families do what the routers do where neither routerjax nor jax can be imported."""

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import InputError, Router, data, formats, metrics
from routerjax.formats.onnx_fusions import fuse
from routerjax.formats.onnx_int8 import quantize_products
from routerjax.runtime import load, onnx_function
from tests.formats.matrix import FAMILIES, cost_aware, differences, make_router, prompts
from tests.routers import tiny_text_router

pytestmark = pytest.mark.onnx
INT8 = {"weights": "int8"}
PRODUCTS = {**INT8, "activations": "int8"}


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Router]:
    return {family: make_router(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_each_family_in_each_format(routers: dict[str, Router], family: str, format: str, tmp_path: Path) -> None:
    largest = differences(routers[family], tmp_path / "bundle", format)
    assert largest["win_prob"] <= 1e-5
    assert largest["scores"] <= 1e-5
    assert largest["decisions"] == 0


@pytest.mark.parametrize("family", ["mf", "bert"])
def test_normalisations_and_activations_are_those_of_onnx(
    routers: dict[str, Router], family: str, tmp_path: Path
) -> None:
    import onnx  # pyright: ignore[reportMissingImports]

    formats.export(routers[family], tmp_path / "bundle", "onnx", prompts=prompts()[-6:])
    model = onnx.load(tmp_path / "bundle" / "from_token_ids.onnx")
    onnx.checker.check_model(model)
    text = routers[family].featurizer.text_function()
    layers = 2  # of the encoder, each with two normalisations and one activation
    counts = collections.Counter(node.op_type for node in model.graph.node)
    assert text is not None
    assert (counts["LayerNormalization"], counts["Gelu"]) == (2 * layers + 1, layers)
    assert (counts["Erf"], counts["ReduceSumSquare"]) == (0, family == "mf")  # mf's own norm of an embedding


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
@pytest.mark.parametrize("family", ["mf", "sw", "bert"])
def test_costs_decide_as_the_router_does(routers: dict[str, Router], family: str, format: str, tmp_path: Path) -> None:
    assert differences(cost_aware(routers[family]), tmp_path / "bundle", format)["decisions"] == 0


@pytest.mark.parametrize("options", [INT8, PRODUCTS], ids=["weights", "products"])
@pytest.mark.parametrize("family", ["mf", "bert", "causal"])
def test_int8_keeps_the_bound_that_is_stated(
    routers: dict[str, Router], family: str, options: dict[str, str], tmp_path: Path
) -> None:
    largest = differences(routers[family], tmp_path / "bundle", "onnx", options)
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    bound = description["int8"]["bound"]
    assert set(description["tolerance"].values()) == {bound}
    assert 0 < largest["win_prob"] <= bound < 0.2
    assert largest["scores"] <= bound
    assert largest["decisions"] == 0
    assert "int8 changes win_prob from_token_ids by at most" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_card_tells_the_change_of_apgr(routers: dict[str, Router], tmp_path: Path) -> None:
    router, texts = routers["mf"], tuple(f"prompt {row} {'long ' * (row % 7)}" for row in range(40))
    rng = np.random.default_rng(0)
    quality = {model: rng.integers(0, 2, len(texts)).astype(float) for model in (router.strong, router.weak)}
    table = data.Benchmark("table", texts, {**quality, router.strong: np.maximum(*quality.values())})
    data.write_benchmark_table(table, tmp_path / "table.parquet")
    equal = dict.fromkeys((router.strong, router.weak), np.zeros(len(texts)))
    data.write_benchmark_table(dataclasses.replace(table, quality=equal), tmp_path / "equal.parquet")
    options = {**PRODUCTS, "benchmark": str(tmp_path / "table.parquet")}
    formats.export(router, tmp_path / "bundle", "onnx", options=options)
    measured = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["benchmark"]
    for win_prob, key, tolerance in (
        (router.win_prob(texts), "apgr_of_router", 1e-9),
        (np.array([load(tmp_path / "bundle").win_prob(text) for text in texts]), "apgr", 1e-9),
    ):
        curve = metrics.cost_quality_curve(win_prob, *(table.quality[model] for model in (router.strong, router.weak)))
        assert measured[key] == pytest.approx(metrics.apgr(curve), abs=tolerance)
    assert 0 < measured["largest_change"] < 0.1
    note = f"int8 changes APGR on 40 prompts of table from {measured['apgr_of_router']:.4f} to {measured['apgr']:.4f}"
    assert note in (tmp_path / "bundle" / "README.md").read_text()
    for changes, message in (
        ({"weights": "float32", "activations": "float32"}, "benchmark=FILE is for the change of APGR by weights=int8"),
        ({"benchmark": str(tmp_path / "none.csv")}, "benchmark='.*none.csv'"),
        ({"benchmark": ""}, "benchmark='': "),
        (
            {"benchmark": str(tmp_path / "equal.parquet")},
            "APGR needs a strong model that is better: .* 0: give",
        ),
    ):
        with pytest.raises(InputError, match=message):
            formats.export(router, tmp_path / "other", "onnx", options={**options, **changes})


def test_what_cannot_be_held_is_refused_by_name(routers: dict[str, Router], tmp_path: Path) -> None:
    for family in ("sw", "knn", "clusters"):
        with pytest.raises(
            InputError, match=f"weights=int8 would round the battles that {family} compares prompts with"
        ):
            formats.export(routers[family], tmp_path / "bundle", "onnx", options=INT8)
    narrow = dataclasses.replace(routers["mf"], variables={"params": {"kernel": jnp.zeros((2, 2), jnp.bfloat16)}})
    with pytest.raises(InputError, match="onnx holds weights of float32, got bfloat16"):
        formats.export(narrow, tmp_path / "bundle", "onnx")
    with pytest.raises(InputError, match="weights"):
        formats.export(routers["mf"], tmp_path / "bundle", "onnx", options={"weights": "int4"})
    with pytest.raises(InputError, match="activations=int8 goes with weights=int8: give both"):
        formats.export(routers["mf"], tmp_path / "bundle", "onnx", options={"activations": "int8"})
    assert not list(tmp_path.iterdir())


def test_products_of_integers_are_those_that_onnx_defines() -> None:
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 24), (16, 24), (16,)))
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", 24), ("y", 16))
    ]
    initializers = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], initializers)
    model = quantize_products(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    assert "Gemm" not in {each.op_type for each in model.graph.node}
    assert "weight" not in {each.name for each in model.graph.initializer}
    # x ~ step * (integer - zero), of 8 bits without a sign over the range that holds 0; weights of -64 to 64 by row.
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    zero = np.clip(np.round(-min(x.min(), 0) / step), 0, 255)
    integers = np.clip(np.round(x / step) + zero, 0, 255) - zero
    scale = np.abs(weight).max(axis=1) / 64
    expected = (integers @ np.round(weight / scale[:, None]).T) * (step * scale) + bias
    (computed,) = onnx_function(model.SerializeToString())({"x": x}).values()
    np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-5)
    assert 0 < np.abs(computed - (x @ weight.T + bias)).max() < 0.2


def graph_of(nodes: list, constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> Any:
    """Model from ``x`` to ``y``, with the shapes of what is between."""
    import onnx  # pyright: ignore[reportMissingImports]
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), helper.make_empty_tensor_value_info("y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([helper.make_node(*node) for node in nodes], "one", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def layer_norm_graph(
    *, mean: int = 2, again: int = 2, square: int = 2, scale: tuple[int, ...] = (8,), root: tuple[int, ...] = (8, 8, 1)
) -> Any:
    rng = np.random.default_rng(1)
    axes = {name: np.array([axis]) for name, axis in (("mean", mean), ("again", again), ("square", square))}
    numbers = {"n": np.float32(8), "eps": np.float32(1e-5), "one": np.float32(1), "last": np.array([2])}
    weights = {"scale": rng.standard_normal(8).astype(np.float32), "bias": rng.standard_normal(8).astype(np.float32)}
    constants = {**axes, **numbers, **weights, "shape": np.array(scale), "root_shape": np.array(root)}
    nodes = [
        ("ReduceSum", ["x", "mean"], ["sum_0"]), ("Div", ["sum_0", "n"], ["mean_0"]),
        ("ReduceSum", ["x", "again"], ["sum_1"]), ("Div", ["sum_1", "n"], ["mean_1"]),
        ("Sub", ["x", "mean_0"], ["centred_0"]), ("Sub", ["x", "mean_1"], ["centred_1"]),
        ("ReduceSumSquare", ["centred_0", "square"], ["squares"]), ("Div", ["squares", "n"], ["variance"]),
        ("Add", ["variance", "eps"], ["stable"]), ("Sqrt", ["stable"], ["root"]),
        ("Reshape", ["root", "root_shape"], ["root_shaped"]), ("Div", ["one", "root_shaped"], ["inverse"]),
        ("Reshape", ["scale", "shape"], ["scale_shaped"]), ("Mul", ["inverse", "scale_shaped"], ["scaled"]),
        ("Mul", ["centred_1", "scaled"], ["product"]), ("Add", ["product", "bias"], ["y"]),
    ]  # fmt: skip
    return graph_of(nodes, constants, (8, 8, 8))


@pytest.mark.parametrize(
    ("changes", "is_fused"),
    [
        ({}, True),
        ({"mean": 1}, False),
        ({"again": 1}, False),
        ({"square": 1}, False),
        ({"scale": (8, 1)}, False),
        ({"root": (8, 1, 8)}, False),
    ],
)
def test_what_is_nearly_a_layer_normalisation_stays(changes: dict[str, Any], is_fused: bool) -> None:
    model = layer_norm_graph(**changes)
    fused = fuse(model)
    assert ("LayerNormalization" in {node.op_type for node in fused.graph.node}) == is_fused
    x = np.random.default_rng(0).standard_normal((8, 8, 8)).astype(np.float32)
    before, after = (onnx_function(each.SerializeToString())({"x": x})["y"] for each in (model, fused))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_products_one_behind_the_other_and_with_factors() -> None:
    rng = np.random.default_rng(0)
    square = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("first", "second")}
    x = rng.standard_normal((4, 16)).astype(np.float32)
    chained = graph_of([("MatMul", ["x", "first"], ["h"]), ("MatMul", ["h", "second"], ["y"])], square, (4, 16))
    computed = onnx_function(quantize_products(chained).SerializeToString())({"x": x})["y"]
    np.testing.assert_allclose(computed, x @ square["first"] @ square["second"], atol=1.0)
    halved = graph_of([("Gemm", ["x", "first", "second"], ["y"])], square, (16, 16))
    halved.graph.node[0].attribute.add(name="beta", type=1, f=0.5)
    assert [node.op_type for node in quantize_products(halved).graph.node] == ["Gemm"]


def test_calibrations_and_likelihoods_convert(routers: dict[str, Router], tmp_path: Path) -> None:
    rounding = {"knots": jnp.linspace(0.2, 0.8, 5), "values": jnp.asarray([0.1, 0.3, 0.3, 0.6, 0.9])}
    for name, calibration in {"isotonic": rounding, "platt": {"slope": 2.0, "intercept": 0.3}}.items():
        leaves = {key: jnp.asarray(leaf, jnp.float32) for key, leaf in calibration.items()}
        router = dataclasses.replace(routers["mf"], variables={**routers["mf"].variables, "calibration": leaves})
        assert differences(router, tmp_path / name, "onnx")["win_prob"] <= 1e-5
    router = tiny_text_router(tmp_path, family="causal", loss="five_ratings", threshold=0.5)
    formats.export(router, tmp_path / "ratings", "onnx", prompts=prompts()[-6:])
    assert load(tmp_path / "ratings").scores(prompts()[:2]).shape == (2, 5)


def test_the_functions_take_any_batch_and_length(routers: dict[str, Router], tmp_path: Path) -> None:
    formats.export(routers["sw"], tmp_path / "bundle", "onnx", prompts=prompts()[-6:])
    bundle = load(tmp_path / "bundle")
    inputs = bundle.description["functions"]["from_embedding"]["inputs"]
    assert inputs == {"embedding": {"dtype": "float32", "shape": ["batch", 16]}}
    assert bundle.description["needs"] == {"onnx_opset": 21, "onnx_ir": bundle.description["needs"]["onnx_ir"]}
    embedding = np.random.default_rng(0).standard_normal((130, 16)).astype(np.float32)
    whole = bundle.win_prob(embedding=embedding)
    for rows in (slice(0, 1), slice(1, 8), slice(0, 0)):
        np.testing.assert_allclose(bundle.win_prob(embedding=embedding[rows]), whole[rows], atol=1e-6)


def test_tritons_configuration_is_one_that_triton_reads(routers: dict[str, Router], tmp_path: Path) -> None:
    from google.protobuf import text_format
    from onnxruntime import InferenceSession
    from tritonclient.grpc import model_config_pb2

    assert differences(routers["mf"], tmp_path / "bundle", "triton")["win_prob"] <= 1e-5
    for function in ("from_embedding", "from_token_ids"):
        model = tmp_path / "bundle" / "model_repository" / function
        config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert (config.name, config.backend, config.max_batch_size) == (function, "onnxruntime", 64)
        session = InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        types = {"tensor(float)": model_config_pb2.TYPE_FP32, "tensor(int32)": model_config_pb2.TYPE_INT32}
        for stated, tensors in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            expected = [(each.name, types[each.type], len(each.shape) - 1) for each in tensors]
            actual = [(each.name, each.data_type, 0 if each.HasField("reshape") else len(each.dims)) for each in stated]
            assert actual == expected
