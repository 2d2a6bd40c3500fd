"""Exported functions and the scores that they must give are both computed in full float32, on any device."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from routerjax import Router, formats
from tests.routellm import random_tensors, write_checkpoint
from tests.routers import tiny_router, tiny_text_router


def released(folder: Path) -> Router:
    return formats.read(write_checkpoint(folder, random_tensors("released")), "routellm-mf")


@pytest.mark.parametrize(
    ("format", "make"),
    [
        ("stablehlo", tiny_router),
        ("stablehlo", tiny_text_router),
        ("hf", tiny_text_router),
        ("routellm", released),
    ],
)
def test_references_have_the_precision_of_what_is_written(
    format: str, make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = []

    def recording(name: str) -> Callable:
        method = getattr(Router, name)

        def call(*arguments, **options):
            precisions.append(jax.config.jax_default_matmul_precision)
            return method(*arguments, **options)

        return call

    for name in ("scores", "win_prob", "outcome_prob"):
        monkeypatch.setattr(Router, name, recording(name))
    formats.export(make(tmp_path), tmp_path / "out", format)
    assert precisions
    assert set(precisions) == {"highest"}
    for path in (tmp_path / "out").glob("*.stablehlo"):
        program = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module()
        products = re.findall(r"stablehlo\.dot_general.*", program)
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
