"""Search for an input that breaks a property."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
from hypothesis import strategies as st

from tests.fuzz.place import Place


def search(
    function: Callable[[Place, st.DataObject, Path], None], place: Place, *, examples: int, seed: int | None = None
) -> None:
    """Try a property on so many inputs; raise what the smallest input that breaks it raised.

    Args:
        function: one of :data:`tests.fuzz.properties.PROPERTIES`.
        place: good inputs.
        examples: how many inputs to draw.
        seed: of the draws; None draws the same inputs in every run.
    """

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        # An input costs up to seconds: a smaller one is looked for only where a person will read it.
        phases=[hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if seed is None else [])],
    )
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            function(place, data, Path(folder))

    if seed is not None:
        check = hypothesis.seed(seed)(check)
    check()
