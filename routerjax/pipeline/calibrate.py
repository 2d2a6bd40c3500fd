"""Calibration of a router on battles that it was not trained on."""

from __future__ import annotations

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np

from routerjax import metrics
from routerjax.calibration import cross_fitted, fit_calibration
from routerjax.data import (
    Preferences,
    model_index,
)
from routerjax.errors import InputError
from routerjax.features import EmbeddingCache
from routerjax.router import Router

logger = logging.getLogger(__name__)

CALIBRATION_FIGURES = {
    "log_loss": metrics.log_loss,
    "brier": metrics.brier,
    "expected_calibration_error": metrics.expected_calibration_error,
}


def calibrate_router(router: Router, battles: Preferences, *, method: str, cache: EmbeddingCache | None) -> Router:
    """Calibrate a router's win probability on battles of its pair that it was not trained on.

    What it gains is in ``provenance["calibration"]``: log-loss, Brier score and expected calibration error of the raw
    and of the calibrated win probability, the latter of maps fitted to other battles (5 folds). A threshold that the
    router had is dropped, since win probabilities have moved.

    Args:
        router: calibrated before or not.
        battles: of which those between ``router.strong`` and ``router.weak`` count, each once, whatever its weight.
        method: ``temperature``, ``platt`` or ``isotonic``; see :mod:`routerjax.calibration`.
        cache: where embeddings are kept.

    Raises:
        InputError: no battles of the pair, or as :func:`routerjax.calibration.fit_calibration`.
    """
    strong, weak = (model_index(battles.models, name) for name in (router.strong, router.weak))
    forward = (battles.model_a == strong) & (battles.model_b == weak)
    of_pair = forward | ((battles.model_a == weak) & (battles.model_b == strong))
    if not of_pair.any():
        raise InputError(f"no battle between {router.strong} and {router.weak} to calibrate on")
    pair_battles = battles.exchange_sides(battles.model_a == weak).select(of_pair)
    # As the router's win probability counts ties.
    label = np.asarray(router.likelihood.label(jnp.asarray(pair_battles.outcome)))
    counts = ~np.isnan(label)
    if not counts.any():
        raise InputError(f"every battle between {router.strong} and {router.weak} is a tie")
    pair_battles, label = pair_battles.select(counts), label[counts]
    variables = {name: leaf for name, leaf in router.variables.items() if name != "calibration"}
    raw = dataclasses.replace(router.with_threshold(None), variables=variables)
    win_prob = raw.win_prob(pair_battles.prompts, exclude_own_battles=True, cache=cache, progress=True)
    calibrated = cross_fitted(win_prob, label, pair_battles.prompt_index, method=method)
    figures = {
        name: {"raw": figure(win_prob, label), "calibrated": figure(calibrated, label)}
        for name, figure in CALIBRATION_FIGURES.items()
    }
    fitted = fit_calibration(win_prob, label, method=method)
    loss = figures["log_loss"]
    if loss["calibrated"] > loss["raw"]:
        logger.warning(
            "calibration (%s) on %d battles makes win probabilities worse: log loss %.4f, raw %.4f, on battles that it "
            "was not fitted to; leave it out, or take more battles",
            *(method, len(pair_battles), loss["calibrated"], loss["raw"]),
        )
    described = {"method": method, "battles": len(pair_battles), **figures}
    return dataclasses.replace(
        raw, variables={**variables, "calibration": fitted}, provenance={**router.provenance, "calibration": described}
    )
