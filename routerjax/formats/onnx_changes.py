"""Changes of outputs by rounding in ONNX models: of the golden prompts, and of APGR on a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from routerjax.data import read_benchmark_table
from routerjax.errors import InputError
from routerjax.features import TextFunction
from routerjax.metrics import apgr, cost_quality_curve
from routerjax.router import Router
from routerjax.runtime import onnx_function

# A bound is so many times the largest change on the golden prompts: others may change more. It is never smaller.
TIMES_LARGEST, SMALLEST_BOUND = 3.0, 1e-3


@dataclass(frozen=True)
class Changes:
    """Changes that were measured.

    Attributes:
        bound: that the bundle states for win probabilities, and for scores over the largest, if above 1.
        settings: for ``bundle.json``.
        notes: lines of the model card.
    """

    bound: float
    settings: Mapping[str, object]
    notes: Sequence[str]


def changes_of_outputs(
    models: Mapping[str, Any], shapes: Mapping[str, Mapping[str, object]], golden: Mapping[str, np.ndarray]
) -> Changes:
    """Compare models with the router on the golden prompts.

    Args:
        models: by function.
        shapes: of the inputs of each function, by name.
        golden: inputs, and the router's outputs.
    """
    measured: dict[str, object] = {}
    largest, notes = 0.0, []
    for name, model in models.items():
        outputs = onnx_function(model.SerializeToString())({each: golden[each] for each in shapes[name]})
        for kind in sorted({"scores", "win_prob"} & set(golden)):
            change = np.abs(outputs[kind] - golden[kind])
            largest = max(largest, float(change.max()) / max(1.0, float(np.abs(golden[kind]).max())))
            measured[f"{name}.{kind}"] = {"largest": float(change.max()), "mean": float(change.mean())}
            notes.append(
                f"int8 changes {kind} {name} by at most {change.max():.1e} and by {change.mean():.1e} on average"
            )
    bound = max(TIMES_LARGEST * largest, SMALLEST_BOUND)
    return Changes(bound, {**measured, "bound": bound}, [*notes, f"bound that is stated for int8: {bound:.1e}"])


def require_gap(router: Router, benchmark: str) -> None:
    """Refuse a table on which the router's strong model is not better than the weak one.

    Raises:
        InputError: such a table, one that cannot be read, or one without the scores of both models.
    """
    try:
        table = read_benchmark_table(benchmark, strong=router.strong, weak=router.weak)
        strong, weak = (float(table.quality[model].mean()) for model in (router.strong, router.weak))
        if not strong > weak:
            got = f"the strong model's mean score is {strong:g}, and the weak one's {weak:g}"
            raise InputError(f"APGR needs a strong model that is better: {got}: give another table")
    except (InputError, OSError) as error:
        raise InputError(f"benchmark={benchmark!r}: {error}") from error


def change_of_apgr(router: Router, text: TextFunction, model: Any, benchmark: str) -> tuple[dict[str, object], str]:
    """Compare APGR of a model and of its router on a benchmark.

    Args:
        router: of a pair.
        text: its way from text to tokens.
        model: from token ids.
        benchmark: table of scores, see :func:`routerjax.data.read_benchmark_table`.

    Returns:
        For ``bundle.json``, and a line of the model card.

    Raises:
        InputError: a table that cannot be read, or without the scores of the router's pair.
    """
    table = read_benchmark_table(benchmark, strong=router.strong, weak=router.weak, progress=True)
    compute, rounded = onnx_function(model.SerializeToString()), np.zeros(len(table), np.float32)
    for row, ids in enumerate(text.tokenizer.read(table.prompts).token_ids):  # one by one, as the server asks for them
        (rounded[row],) = compute(dict(text.tokenizer.pad([ids])))["win_prob"]
    exact = router.win_prob(table.prompts, progress=True)
    qualities = table.quality[router.strong], table.quality[router.weak]
    before, after = (apgr(cost_quality_curve(win_prob, *qualities)) for win_prob in (exact, rounded))
    largest = float(np.abs(rounded - exact).max())
    measured = {"prompts": len(table), "apgr": after, "apgr_of_router": before, "largest_change": largest}
    changed = f"int8 changes APGR on {len(table)} prompts of {table.name} from {before:.4f} to {after:.4f}"
    return measured, f"{changed}, and win probabilities by at most {largest:.1e}"
