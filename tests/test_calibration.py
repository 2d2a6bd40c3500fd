"""Calibration maps against scipy and scikit-learn, and what they do to a router."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.optimize
from sklearn.isotonic import IsotonicRegression

from routerjax import InputError, calibration, data, formats, load_router, metrics, pipeline, save_router
from tests.routers import tiny_router

WORDS = ("what", "prove", "poem", "country", "primes", "write", "please")
METHODS = ("temperature", "platt", "isotonic")
apply_calibration = jax.jit(calibration.apply_calibration)


def overconfident(count: int = 3000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Win probabilities whose log-odds are twice too large and shifted, with labels, ties among them."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=count)
    draw, chance = rng.random(count), 1 / (1 + np.exp(-logit))
    label = np.where(rng.random(count) < 0.2, 0.5, draw < chance)
    return 1 / (1 + np.exp(-(2 * logit + 0.7))), label


def logit(win_prob: np.ndarray) -> np.ndarray:
    return np.log(win_prob) - np.log1p(-win_prob)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_scaling_is_the_minimum_that_scipy_finds(method: str) -> None:
    win_prob, label = overconfident()

    def loss(both: np.ndarray) -> float:
        odds = both[0] * logit(win_prob) + (both[1] if method == "platt" else 0.0)
        return float(np.sum(np.logaddexp(0, odds) - label * odds))

    best = scipy.optimize.minimize(loss, np.asarray([1.0, 0.0]), tol=1e-10).x
    fitted = calibration.fit_calibration(win_prob, label, method=method)
    np.testing.assert_allclose(fitted["slope"], best[0], rtol=1e-3)
    np.testing.assert_allclose(fitted["intercept"], best[1] if method == "platt" else 0.0, atol=1e-3)


def test_isotonic_is_that_of_sklearn_between_its_knots_too() -> None:
    win_prob, label = overconfident()
    fitted = calibration.fit_calibration(win_prob, label, method="isotonic")
    reference = IsotonicRegression(out_of_bounds="clip").fit(win_prob, label)
    grid = np.linspace(0, 1, 301)
    actual = apply_calibration(fitted, grid.astype(np.float32))
    # A steep piece multiplies the rounding of its float32 knots.
    np.testing.assert_allclose(actual, reference.predict(grid), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_it_mends_overconfidence_and_keeps_the_order(method: str) -> None:
    win_prob, label = overconfident()
    calibrated = calibration.cross_fitted(win_prob, label, np.arange(3000), method=method)
    assert metrics.log_loss(calibrated, label) < metrics.log_loss(win_prob, label) - 0.01
    error = metrics.expected_calibration_error(calibrated, label)
    assert error < 0.5 * metrics.expected_calibration_error(win_prob, label)
    fitted = calibration.fit_calibration(win_prob, label, method=method)
    mapped = np.asarray(apply_calibration(fitted, np.linspace(0, 1, 1001, dtype=np.float32)))
    assert (np.diff(mapped) >= 0).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1


def test_held_out_battles_say_nothing_of_their_own_map() -> None:
    win_prob, label = overconfident(200)
    prompt = np.arange(200) // 2  # two battles on each
    one = calibration.cross_fitted(win_prob, label, prompt, method="platt", seed=3)
    fold = (np.random.default_rng(3).permutation(100) % 5)[prompt]
    other_label = np.where(fold == 2, 1 - label, label)
    other = calibration.cross_fitted(win_prob, other_label, prompt, method="platt", seed=3)
    np.testing.assert_array_equal(one[fold == 2], other[fold == 2])
    assert (one[fold != 2] != other[fold != 2]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "beta"}, "the calibration method must be one of temperature, platt, isotonic, got 'beta'"),
        ({"win_prob": np.asarray([0.2, 1.5, 0.3])}, r"win_prob must lie in \[0, 1\]; row 1 is 1.5"),
        ({"label": np.asarray([1.0, np.nan, 0.0])}, "label must be finite; row 1 is nan"),
        ({"label": np.ones(2)}, "columns must have one row for each prompt"),
        ({"label": np.full(3, 0.5)}, "one class only: every label is 0.5"),
        ({"label": np.asarray([1.0, 0.0, 0.0])}, "the best slope is -"),
        ({}, "separate these 3 battles without an error, so that no finite slope is best: calibrate on more battles"),
        ({"label": np.asarray([0.0, 0.5, 1.0])}, "separate these 3 battles"),  # a tie between them helps nothing
        ({"label": np.asarray([0.0, 0.5, 1.0]), "method": "temperature"}, "separate these 3 battles"),
    ],
)
def test_bad_input(changes: dict[str, object], message: str) -> None:
    arguments = {"win_prob": np.asarray([0.2, 0.5, 0.8]), "label": np.asarray([0.0, 1.0, 1.0]), "method": "platt"}
    with pytest.raises(InputError, match=message):
        calibration.fit_calibration(**arguments | changes)


def pair_battles(router: object, count: int = 400) -> data.Preferences:
    rng = np.random.default_rng(0)
    a_is_big = rng.random(count) < 0.5
    outcome = np.eye(3)[rng.integers(3, size=count)]
    return data.Preferences.from_names(
        [f"{WORDS[row % 7]} {WORDS[row // 7 % 7]} {row % 11}" for row in range(count)] + ["another pair"],
        [*np.where(a_is_big, "big", "small"), "big"],
        [*np.where(a_is_big, "small", "big"), "medium"],
        np.concatenate([outcome, [[1, 0, 0]]]),
        models=("big", "medium", "small"),
    )


def informative(router: object, battles: data.Preferences) -> data.Preferences:
    """Let the strong model win more often where the router says so."""
    confidence = 8.0 * logit(router.win_prob(battles.prompts))
    big_wins = np.random.default_rng(1).random(len(battles)) < 1 / (1 + np.exp(confidence.mean() - confidence))
    a_wins = np.where(battles.model_a == 0, big_wins, ~big_wins)
    return dataclasses.replace(battles, outcome=np.where(a_wins[:, None], [[1, 0, 0]], [[0, 0, 1]]))


@pytest.mark.parametrize("method", METHODS)
def test_a_calibrated_router_is_saved_loaded_and_exported(tmp_path: Path, method: str) -> None:
    router = tiny_router(tmp_path, threshold=0.4)
    battles = informative(router, pair_battles(router))
    calibrated = pipeline.calibrate_router(router, battles, method=method, cache=None)
    figures = calibrated.provenance["calibration"]
    assert (figures["method"], figures["battles"]) == (method, 400)
    assert set(figures["brier"]) == {"raw", "calibrated"}
    assert calibrated.threshold is None
    prompts = battles.prompts[:7]
    raw, mapped = router.win_prob(prompts), calibrated.win_prob(prompts)
    first = battles.select(np.arange(400))
    label = np.where(first.model_a == 0, first.label, 1 - first.label)
    fitted = calibration.fit_calibration(router.win_prob(first.prompts), label, method=method)
    np.testing.assert_allclose(mapped, apply_calibration(fitted, raw), atol=1e-6)
    np.testing.assert_array_equal(calibrated.win_prob(prompts, "medium"), router.win_prob(prompts, "medium"))
    save_router(calibrated, tmp_path / "calibrated")
    np.testing.assert_array_equal(load_router(tmp_path / "calibrated").win_prob(prompts), mapped)
    again = pipeline.calibrate_router(calibrated, battles, method=method, cache=None)
    np.testing.assert_allclose(again.win_prob(prompts), mapped, atol=1e-6)
    if method == "isotonic":
        assert formats.export(calibrated, tmp_path / "bundle", "stablehlo")["from_embedding"] <= 1e-6


def test_a_calibration_that_makes_things_worse_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    router = tiny_router(tmp_path)
    battles = informative(router, pair_battles(router))
    pipeline.calibrate_router(router, battles, method="platt", cache=None)
    assert "makes win probabilities worse" not in caplog.text
    by_chance = pair_battles(router).select(np.arange(12))
    pipeline.calibrate_router(router, by_chance, method="isotonic", cache=None)
    assert "calibration (isotonic) on 12 battles makes win probabilities worse: log loss" in caplog.text


def test_battles_of_other_pairs_are_refused(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    others = pair_battles(router).select(np.asarray([400]))
    with pytest.raises(InputError, match="no battle between big and small to calibrate on"):
        pipeline.calibrate_router(router, others, method="platt", cache=None)
