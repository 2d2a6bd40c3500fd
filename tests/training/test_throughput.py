"""Figures of a run: percentiles over its steps, and the work of an epoch over its time and the devices' peak."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax import training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.models import MatrixFactorization
from routerjax.training.throughput import PEAK_FLOPS, Peak, StepTimes, Workload, peak_of
from tests.training.battles import NUM_MODELS, WIDTH, random_battles


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 300)), min_size=1, max_size=20))
def test_percentiles_are_over_steps_whatever_calls_they_came_in(calls: list[tuple[int, int]]) -> None:
    times = StepTimes()
    for seconds, count in calls:
        times.add(float(seconds * count), count)
    steps = np.repeat(*map(list, zip(*calls, strict=True)))
    expected = [np.percentile(steps, percent, method="inverted_cdf") for percent in (50, 90, 99)]
    assert list(times.percentiles().values()) == expected


def device(kind: str, platform: str, process: int) -> SimpleNamespace:
    return SimpleNamespace(device_kind=kind, platform=platform, process_index=process)


def test_the_peak_is_the_vendors_or_is_measured_and_says_so() -> None:
    kind = "NVIDIA H100 80GB HBM3"
    eight = peak_of([device(kind, "gpu", place // 4) for place in range(8)], jnp.dtype("float32"))
    assert eight == (8 * PEAK_FLOPS[kind], f"8 x {kind}")
    cores = [device("cpu", "cpu", process) for process in (0, 0, 1, 1)]
    here, two_hosts = (peak_of(devices, jnp.dtype("float32")) for devices in (cores[:2], cores))
    assert here.source == "a matmul in float32, measured"
    assert two_hosts.flops == 2 * here.flops > 2e9  # devices of one host share its cores


def test_a_row_divides_the_work_of_an_epoch_by_its_time() -> None:
    battles, config = random_battles(), TrainingConfig(epochs=1, batch_size=16)
    module = MatrixFactorization(num_models=NUM_MODELS, model_dim=8)
    (row,) = training.fit(module, battles, optimizer=OptimizerConfig(), training=config).history
    projection, scores = WIDTH * 8, NUM_MODELS * 8
    a_battle = row["model_flops_per_second"] / row["battles_per_second"]
    assert a_battle == pytest.approx(2 * (2 * projection + 3 * scores) * 7 * 16 / 100)  # with 12 rows of padding
    peak = peak_of(jax.local_devices()[:1], jnp.dtype("float32")).flops
    assert row["model_flops_utilization"] == pytest.approx(row["model_flops_per_second"] / peak)
    assert row["peak_host_bytes"] > 1e8
    assert 0 < row["step_seconds_p50"] <= row["step_seconds_p90"] <= row["step_seconds_p99"]


@pytest.mark.parametrize(
    ("flops", "text"), [(5e11, "50.0% of 1 T/s (measured)"), (4e12, "(measured, which was too low)")]
)
def test_a_rate_above_the_peak_says_that_the_peak_is_too_low(flops: float, text: str) -> None:
    work = Workload(battles=10, flops=flops, peak=Peak(1e12, "measured"))
    row = {"loss": 0.5, "input_wait_share": 0.0, "compile_seconds": 0.0, **work.figures(1.0, StepTimes())}
    assert text in work.describe(row)
