"""A plan of a run: what it keeps in the memory of each device, and what would make it fit, before anything is bought.

The step is compiled for devices of the host, in a process of its own: how many there are is settled when JAX starts.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerjax.errors import InputError

logger = logging.getLogger(__name__)

UNITS = {"GB": 10**9, "GiB": 2**30}
MOST_DEVICES = 1024

# XLA on CPU multiplies bfloat16 as float32, and would convert the weights of all layers before the loop over them: an
# array that accelerators, which multiply bfloat16 itself, never hold.
XLA_FLAGS = "--xla_disable_hlo_passes=while-loop-invariant-code-motion"


@dataclass(frozen=True)
class Devices:
    """Devices of one kind.

    Attributes:
        count: how many.
        memory: bytes of each.
    """

    count: int
    memory: int

    @classmethod
    def parse(cls, text: str) -> Devices:
        """Read ``8x80GB``, or ``1x24GiB``.

        Raises:
            InputError: it is something else.

        Example:
            >>> Devices.parse("8x80GB")
            Devices(count=8, memory=80000000000)
        """
        match = re.fullmatch(r"(\d{1,4})x(\d+(?:\.\d+)?)(GB|GiB)", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= MOST_DEVICES or float(match[2]) == 0:
            raise InputError(
                f"--devices must be a number of devices, at most {MOST_DEVICES}, and the memory of each, such as "
                f"8x80GB; got {text!r}"
            )
        return cls(int(match[1]), int(float(match[2]) * UNITS[match[3]]))


def plan_run(config: Path, assignments: Sequence[str], devices: Devices) -> dict[str, Any]:
    """Plan the run of a configuration, without weights: of its encoder's folder only settings and tokenizer are read.

    Args:
        config: a Python file, see :func:`routerjax.pipeline.load_config`.
        assignments: see :func:`routerjax.config.override`.
        devices: to train on.

    Returns:
        Plain values: ``parameters`` (trained, frozen), ``bytes`` of a device (parameters, moments, gradients,
        temporaries, total), ``flops`` of a step (forward, backward, recomputed), ``fits``, and what was ``tried``: the
        settings and their bytes, of which the last fits if any does. ``would_fit`` are those settings, or None.

    Raises:
        InputError: as :func:`routerjax.pipeline.train_router` before it reads battles; a router that reads no tokens.
        ChildProcessError: the process that compiles ended without an answer, as where the host's memory was too small.
    """
    count = f"--xla_force_host_platform_device_count={devices.count}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {count} {XLA_FLAGS}".strip()
    question = json.dumps({"config": str(config), "set": list(assignments), "memory": devices.memory})
    with subprocess.Popen(
        [sys.executable, "-m", "routerjax.pipeline.plan_process", question],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    ) as child:
        assert child.stdout is not None
        answer: dict[str, Any] = {}
        for line in child.stdout:
            answer = json.loads(line)
            if "log" in answer:
                logger.info("%s", answer["log"])
    if "error" in answer:
        raise InputError(answer["error"])
    if "plan" not in answer:
        raise ChildProcessError(f"the process that compiles the step ended with status {child.returncode}, and no plan")
    return answer["plan"]


def describe_plan(plan: Mapping[str, Any]) -> list[str]:
    """A plan as lines of text."""
    devices, step, size = plan["devices"], plan["step"], plan["bytes"]
    memory = _gigabytes(devices["memory"])
    flops = sum(plan["flops"].values())
    parameters, recomputed = plan["parameters"], plan["flops"]["recomputed"]
    again = f" ({recomputed / flops:.0%} of them computed again)" if recomputed else ""
    lines = [
        f"{plan['router']}; parameters: {parameters['trained']:,} trained, {parameters['frozen']:,} frozen",
        f"a step: {step['prompts']} x {step['length']} tokens in {step['micro_batches']} micro-batch(es), {flops:.3g} "
        f"floating-point operations{again}",
        f"GB on each of {devices['used']} device(s), training.devices={plan['wrapper']}:",
        *(f"  {name:<12}{_gigabytes(size[name]):>8}" for name in ("parameters", "moments", "gradients")),
        f"  {'temporaries':<12}{_gigabytes(size['temporaries']):>8}  by XLA's compiler for CPU; others differ",
        f"  {'together':<12}{_gigabytes(size['total']):>8}  of {memory}: {'fits' if plan['fits'] else 'does not fit'}",
    ]
    for tried in plan["tried"]:
        kept, total = tried["kept"], tried["total"]
        needs = f"{_gigabytes(kept)} and temporaries" if total is None else _gigabytes(total)
        lines.append(f"{'would fit' if tried['fits'] else 'would not fit'}, {needs}: --set {' '.join(tried['set'])}")
    if not plan["fits"] and plan["would_fit"] is None:
        lines.append("nothing that was tried fits: take more devices, or a smaller encoder")
    return lines


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"
