"""Exported functions and the scores that they must give are both computed in full float32, on any device."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from routerjax import Router, formats
from routerjax.formats import import_routellm_mf
from tests.routellm import random_tensors, write_checkpoint
from tests.routers import tiny_router, tiny_text_router


def released(folder: Path) -> Router:
    return import_routellm_mf(write_checkpoint(folder, random_tensors("released")))


@pytest.mark.parametrize(
    ("write", "make"),
    [
        (formats.export_stablehlo, tiny_router),
        (formats.export_stablehlo, tiny_text_router),
        (formats.export_hf, tiny_text_router),
        (formats.export_routellm, released),
    ],
)
def test_references_have_the_precision_of_what_is_written(
    write: Callable, make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    write(make(tmp_path), tmp_path / "out")
    assert precisions
    assert set(precisions) == {"highest"}
    for path in (tmp_path / "out").glob("*.stablehlo"):
        program = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module()
        products = re.findall(r"stablehlo\.dot_general.*", program)
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
