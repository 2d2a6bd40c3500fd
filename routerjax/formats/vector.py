"""Bundles that are one vector and a bias: matrix factorisation for its pair of models, by numpy alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import jax
import numpy as np

from routerjax.features import TextFunction
from routerjax.formats.bundle import BundleFormat, Contents
from routerjax.formats.scoring_functions import input_shapes
from routerjax.likelihoods import COLLECTION, BradleyTerry, RaoKupper
from routerjax.models import MatrixFactorization
from routerjax.router import Router

TOLERANCE, FILE = 1e-5, "vector.npy"


@dataclass(frozen=True)
class Vector(BundleFormat):
    """``margin = embedding . vector + bias``, float32; the win probability is that of the likelihood, calibrated.

    Scores of matrix factorisation are linear in the embedding, so that the margin of a pair is too: with
    ``score_m(q) = w2 . (v_m * (W1' q + b))``, the vector is ``W1 (w2 * (v_strong - v_weak))``. Under a tie threshold t,
    which is 0 in Bradley and Terry's model, ``win_prob = (1 + sigmoid(margin - t) - sigmoid(-margin - t)) / 2``.
    """

    name = "vector"
    requirements = ("numpy>=2.0",)
    reads_text = False
    compared = "win probabilities"

    def unmet(self, router: Router) -> Iterator[str]:
        """Yield each reason."""
        if not isinstance(router.module, MatrixFactorization):
            yield f"one vector holds matrix factorisation of given embeddings (mf) alone, got {router.family}"
        if _tie_threshold(router) is None:
            loss = f"{router.likelihood.name} with the readout {router.likelihood.readout}"
            yield f"one vector holds the losses bradley_terry, and rao_kupper with half_tie, alone; got {loss}"
        if not router.has_pair:
            yield f"one vector is of a pair of models, and the policy {router.policy.name} has none: give both models"

    def contents(self, router: Router, text: TextFunction | None, golden: Mapping[str, np.ndarray]) -> Contents:
        """Multiply the weights out, in float64."""
        del text, golden
        module, params = cast(MatrixFactorization, router.module), router.variables["params"]
        embedding = np.asarray(params["model_embedding"], np.float64)
        if module.normalize_models:
            embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        strong, weak = router.column(router.strong), router.column(router.weak)
        direction = (embedding[strong] - embedding[weak]) * np.asarray(params["classifier"], np.float64)
        projection = params["prompt_projection"]
        vector = np.asarray(projection["kernel"], np.float64) @ direction
        bias = float(np.asarray(projection["bias"], np.float64) @ direction) if module.bias else 0.0
        calibration = router.variables.get("calibration")
        stream = io.BytesIO()
        np.save(stream, vector.astype(np.float32), allow_pickle=False)
        return Contents(
            {FILE: stream.getvalue()},
            {"from_embedding": {"file": FILE, "inputs": input_shapes(router, None)["from_embedding"]}},
            tolerance={"from_embedding": TOLERANCE},
            outputs=("model", "win_prob"),
            settings={
                "bias": bias,
                "tie_threshold": _tie_threshold(router),
                "calibration": calibration and {name: np.asarray(leaf).tolist() for name, leaf in calibration.items()},
            },
            notes=("margin = embedding . vector + bias, then the likelihood's win probability and the calibration",),
        )


def _tie_threshold(router: Router) -> float | None:
    """Threshold of ties in nats, by which a margin becomes a win probability; None where that is another function."""
    if isinstance(router.likelihood, BradleyTerry):
        return 0.0
    if isinstance(router.likelihood, RaoKupper) and router.likelihood.readout == "half_tie":
        return float(jax.nn.softplus(router.variables[COLLECTION]["tie"]))
    return None
