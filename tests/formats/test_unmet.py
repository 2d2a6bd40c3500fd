"""An export names all that a format cannot hold of a router, in one line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, Router, formats
from tests.routers import tiny_router, tiny_text_router

CALIBRATION = "no place for a calibration"


def calibrated(router: Router) -> Router:
    calibration = {name: np.ones((), np.float32) for name in ("scale", "shift")}
    return dataclasses.replace(router, variables={**router.variables, "calibration": calibration})


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Router:
    """A causal router that no other program has: label tokens under a loss with a tie score, and a calibration."""
    attributes = {"head": "tokens"}
    folder = tmp_path_factory.mktemp("causal")
    return calibrated(tiny_text_router(folder, family="causal", attributes=attributes, loss="davidson"))


@pytest.mark.parametrize(
    ("format", "reasons"),
    [
        ("hf", [CALIBRATION, "no place for the loss davidson"]),
        ("p2l", ["head='linear', got head='tokens'", "p2l holds the losses", CALIBRATION, "must name a cls_token"]),
        ("routellm-causal", ["the loss five_ratings", CALIBRATION, "set features.truncation=left"]),
        ("peft", ["peft holds low-rank adapters", "for no other loss than bradley_terry", CALIBRATION]),
    ],
)
def test_all_reasons_are_named_at_once(causal: Router, tmp_path: Path, format: str, reasons: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        formats.export(causal, tmp_path / "out", format)
    message = str(refused.value)
    assert "\n" not in message
    listed = message.split("; ")
    assert len(listed) == len(reasons)
    for reason, part in zip(reasons, listed, strict=True):
        assert reason in part


def test_all_reasons_of_a_matrix_factorisation_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        formats.export(calibrated(tiny_router(tmp_path)), tmp_path / "out", "routellm")
    message = str(refused.value)
    for reason in (CALIBRATION, "no place for bias=True", "holds exactly its 64 models", "RouteLLM embeds prompts"):
        assert reason in message
