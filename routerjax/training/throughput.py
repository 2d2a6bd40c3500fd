"""Figures of a run: its speed, the share of its devices' peak that it reaches, and the memory that it takes."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.typing import BatchShape, Variables

PEAK_FLOPS: Mapping[str, float] = {
    # NVIDIA's data sheets of H100, H200, A100 and L4. They print the rate with sparsity, twice the dense one, for the
    # first two and L4.
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    # Google's pages of Cloud TPU versions, a chip: JAX calls v5e, v5p and v6e by other names.
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Floating-point operations a second of one device, dense in bfloat16, by JAX's ``device_kind``."""

PERCENTILES = (50, 90, 99)

FIGURES = (
    *("battles_per_second", "tokens_per_second", "compile_seconds"),
    *(f"step_seconds_p{percent}" for percent in PERCENTILES),
    *("model_flops_per_second", "model_flops_utilization", "input_wait_share", "peak_device_bytes", "peak_host_bytes"),
)
"""Columns of an epoch's row that are measured; two runs that learn the same differ in them."""


class TrainingFlops(Protocol):
    """Floating-point operations of a step, such as :class:`routerjax.models.Flops`."""

    @property
    def forward(self) -> int:
        """From queries to scores."""
        ...

    @property
    def backward(self) -> int:
        """Gradients of what is trained."""
        ...


@runtime_checkable
class CountsFlops(Protocol):
    """Module that says how many floating-point operations its training takes, as the ones of routerjax do."""

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Type that most of them are in."""
        ...

    def training_flops(self, trained: Variables, fixed: Variables, *, rows: int, length: int) -> TrainingFlops:
        """Count those of the loss of ``rows`` queries of ``length`` tokens and of its gradient."""
        ...


class Device(Protocol):
    """Device of JAX."""

    @property
    def device_kind(self) -> str:
        """Name of its kind."""
        ...

    @property
    def platform(self) -> str:
        """``cpu``, ``gpu`` or ``tpu``."""
        ...

    @property
    def process_index(self) -> int:
        """The process that it belongs to."""
        ...


class Peak(NamedTuple):
    """Floating-point operations a second that devices could do.

    Attributes:
        flops: of all devices together.
        source: where the figure is from, for a log.
    """

    flops: float
    source: str


def peak_of(devices: Sequence[Device], dtype: jnp.dtype) -> Peak:
    """Peak of devices: from :data:`PEAK_FLOPS`, or of a matmul that is measured here where they are none of those.

    The devices that JAX makes of one CPU share its cores, so that their peak is that of one.

    Args:
        devices: of one kind, those of other processes too.
        dtype: of the matmul that is measured. The table is of bfloat16, whatever type a run computes in.
    """
    kind, count = devices[0].device_kind, len(devices)
    if kind in PEAK_FLOPS:
        return Peak(count * PEAK_FLOPS[kind], f"{count} x {kind}")
    if devices[0].platform == "cpu":
        count = len({device.process_index for device in devices})
    return Peak(count * _measured_peak(str(jnp.dtype(dtype))), f"a matmul in {jnp.dtype(dtype)}, measured")


@functools.cache
def _measured_peak(dtype: str) -> float:
    """Rate of the fastest of a few matmuls on one device."""
    device = jax.local_devices()[0]
    size = 1024 if device.platform == "cpu" else 8192
    matrix = jax.device_put(np.ones((size, size), dtype), device)
    matmul = jax.jit(jnp.matmul)
    matmul(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        matmul(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def memory_high_water() -> dict[str, float]:
    """Most bytes in use so far: of one device of this process, or of the process where devices do not tell."""
    stats: list[dict[str, Any]] = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return {"peak_device_bytes": max(peaks)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


@dataclass
class StepTimes:
    """Times of an epoch's steps, compilation apart; of those since the run was resumed, if that was within the epoch.

    Attributes:
        calls: seconds a step, and the number of steps, of each call of the compiled program: where it takes many steps,
            each of them counts as their mean.
    """

    calls: list[tuple[float, int]] = field(default_factory=list)

    def add(self, seconds: float, count: int) -> None:
        """Count a call that took so many steps."""
        self.calls.append((seconds / count, count))

    def percentiles(self) -> dict[str, float]:
        """Seconds that so many percent of the steps took at most."""
        if not self.calls:  # all of the epoch's steps were before the run was resumed
            return {}
        seconds, counts = map(np.asarray, zip(*sorted(self.calls), strict=True))
        reached = np.cumsum(counts)
        return {
            f"step_seconds_p{percent}": float(seconds[np.searchsorted(reached, percent / 100 * reached[-1])])
            for percent in PERCENTILES
        }


@dataclass(frozen=True)
class Workload:
    """Work of an epoch.

    Attributes:
        battles: that are learned from.
        tokens: of their prompts, without padding; 0 of embeddings.
        flops: of the model, padding included; None where the module does not say. What is computed again in the
            backward pass to save memory is no part of them.
        peak: of the devices; None where ``flops`` is.
    """

    battles: int
    tokens: int = 0
    flops: float | None = None
    peak: Peak | None = None

    def figures(self, seconds: float, times: StepTimes) -> dict[str, float]:
        """Figures of an epoch that took so many seconds, compilation apart."""
        figures = {"battles_per_second": self.battles / seconds}
        if self.tokens:
            figures["tokens_per_second"] = self.tokens / seconds
        if self.flops is not None and self.peak is not None:
            rate = self.flops / seconds
            figures |= {"model_flops_per_second": rate, "model_flops_utilization": rate / self.peak.flops}
        return {**figures, **times.percentiles(), **memory_high_water()}

    def describe(self, row: Mapping[str, float]) -> str:
        """An epoch's row as text for the log."""
        held_out = f", {row['validation_loss']:.4f} on held-out battles" if "validation_loss" in row else ""
        parts = [f"loss {row['loss']:.4f}{held_out}", f"{row['battles_per_second']:,.0f} battles/s"]
        if "tokens_per_second" in row:
            parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
        names = [f"step_seconds_p{percent}" for percent in PERCENTILES]
        if names[0] in row:
            parts.append(f"steps of {' / '.join(f'{1000 * row[name]:.3g}' for name in names)} ms (p50 / p90 / p99)")
        if row["input_wait_share"]:
            parts.append(f"{row['input_wait_share']:.1%} of that time waiting for batches")
        if self.peak is not None:
            share = row["model_flops_utilization"]
            too_low = ", which was too low" if share > 1 else ""
            parts.append(f"model FLOPs {share:.1%} of {self.peak.flops / 1e12:.3g} T/s ({self.peak.source}{too_low})")
        for name, where in (("peak_device_bytes", "a device"), ("peak_host_bytes", "the process")):
            if name in row:
                parts.append(f"at most {row[name] / 1e9:.2f} GB of {where}")
        if row["compile_seconds"] > 1:
            parts.append(f"compiled for {row['compile_seconds']:.1f} s before")
        return "; ".join(parts)


def workload_of(
    module: object,
    trained: Variables,
    fixed: Variables,
    *,
    battles: int,
    tokens: int,
    shapes: Sequence[BatchShape],
    devices: Sequence[Device],
) -> Workload:
    """Work of an epoch of a module on batches of these shapes, on these devices.

    Args:
        module: of which :class:`CountsFlops` is asked.
        trained, fixed: its variables.
        battles, tokens: of a pass, see :class:`Workload`.
        shapes: of the batches of a pass.
        devices: that share each batch.
    """
    if not isinstance(module, CountsFlops):
        return Workload(battles, tokens)
    flops = 0.0
    for shape in shapes:
        counted = module.training_flops(trained, fixed, rows=shape.rows, length=shape.length)
        flops += shape.batches * (counted.forward + counted.backward)
    return Workload(battles, tokens, flops, peak_of(devices, module.compute_dtype))
