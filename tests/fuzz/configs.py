"""Hypothesis strategies of configurations: fields, and values of the right and of the wrong kinds."""

from __future__ import annotations

import ast
import dataclasses
import typing

from hypothesis import strategies as st

from routerjax import config
from routerjax.families import FAMILIES
from routerjax.models import CausalRouter, DecoderConfig


def _names(kind: type, prefix: str) -> list[str]:
    """Dotted names of all fields below a configuration."""
    hints = typing.get_type_hints(kind)
    names = []
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        inner = hints[field.name]
        names += [name, *(_names(inner, f"{name}.") if dataclasses.is_dataclass(inner) else [])]
    return names


ATTRIBUTES = sorted({field.name for family in FAMILIES.values() for field in dataclasses.fields(family.module)})
FIELDS = [
    *_names(config.ExperimentConfig, ""),
    *(f"router.attributes.{name}" for name in ATTRIBUTES),
    "data.battles.0.path",
    "data.battles.0.drop_where",
    "data.battles.7.path",
]
FIELDS_OF_DECODERS = [
    *(f"features.encoder_attributes.{field.name}" for field in dataclasses.fields(DecoderConfig)),
    *(f"router.attributes.{field.name}" for field in dataclasses.fields(CausalRouter)),
    *("features.template", "features.instruction", "features.layer", "features.pooling", "features.truncation"),
    *("router.loss", "router.readout", "optimizer.moments_dtype", "optimizer.frozen_layers", "optimizer.layer_decay"),
    *("training.devices", "training.model_devices", "training.batch_tokens", "training.micro_batches"),
]
# Nothing that would really train for long: the largest numbers must be refused, not begun.
TEXTS = (
    *("", "None", "null", "true", "0", "-1", "1", "2.5", "4.10", "1e3", "nan", "inf", "-inf", "1e999", "2024_10"),
    *("10**9", "9" * 30, "1e-300", "()", "[]", "{}", '("winner",)', '["winner"]', "{'a': 1}", "[" * 5000, "'x'"),
    *("mf", "sw", "knn", "bert", "three_labels", "davidson", "rao_kupper", "pmap", "jit", "../x", "\x00", "\u202e"),
)
EXPRESSIONS = (
    *("None", "True", "-1", "0", "2.5", "float('nan')", "float('inf')", "10**400", "1e-300", "''", "'x'", "()", "[]"),
    *("{}", "{'a': 1}", "('winner',)", "object()", "print", "b'x'", "__import__('pathlib').Path('.')", "1j", "{1, 2}"),
    *("__import__('numpy').float32(0.5)", "__import__('numpy').int64(3)", "__import__('sys').exit(0)", "1 / 0"),
    *("__import__('os').environ", "lambda: 1", "'\\ud83d'", "range(3)", "(_ for _ in ())", "...", "2**63", "-2**63"),
)

TEXTS_OF_DECODERS = (
    *("bfloat16", "float16", "float64", "int8", "cudnn", "plain", "dots", "full", "mesh", "tokens", "linear", "left"),
    *("chat", "{prompt}", "a {prompt} b", "{prompt}{prompt}", "mean", "lasttoken", "cls", '["query"]', '["q_proj"]'),
    *("five_ratings", "grounded_rao_kupper", "three_outcome", "win", "(4, 0, 4)", "4", "16"),
)
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=10), st.integers(-5, 5).map(str))
settings = st.builds("{}={}".format, st.one_of(st.sampled_from(FIELDS), st.text(max_size=10)), texts)
attributes = st.builds("router.attributes.{}={}".format, st.sampled_from(ATTRIBUTES), texts)


decoder_settings = st.builds(
    "{}={}".format, st.sampled_from(FIELDS_OF_DECODERS), st.one_of(texts, st.sampled_from(TEXTS_OF_DECODERS))
)


def changed(data: st.DataObject, text: str) -> str:
    """The source of a configuration with one argument of a call given another value, or a field more."""
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.keywords]
    call = data.draw(st.sampled_from(calls), label="call")
    value = ast.parse(data.draw(st.sampled_from(EXPRESSIONS), label="value"), mode="eval").body
    kind = data.draw(st.sampled_from(["replace", "replace", "replace", "add", "remove"]), label="change")
    keyword = data.draw(st.sampled_from(call.keywords), label="argument")
    if kind == "remove":
        call.keywords.remove(keyword)
    elif kind == "add" and isinstance(call.func, ast.Name) and hasattr(config, call.func.id):
        present = {other.arg for other in call.keywords}
        fields = [field.name for field in dataclasses.fields(getattr(config, call.func.id))]
        missing = [name for name in (*fields, "no_such_field") if name not in present]
        call.keywords.append(ast.keyword(data.draw(st.sampled_from(missing), label="field"), value))
    else:
        keyword.value = value
    return ast.unparse(ast.fix_missing_locations(tree))
