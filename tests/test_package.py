"""Cost of importing routerjax, and its public names."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

import routerjax
from routerjax.errors import InputError, choose, model_column, nearest
from routerjax.prompts import prompt_ids


def modules_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(' '.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


@pytest.mark.xdist_group("together")
def test_processes_of_the_suite_follow_groups(request: pytest.FixtureRequest) -> None:
    # What several tests need is made once, by the process that runs them all: that a group is known is in the name.
    is_worker = hasattr(request.config, "workerinput")
    assert request.node.nodeid.endswith("@together") == is_worker


def test_import_starts_nothing() -> None:
    heavy = {"jax", "flax", "torch", "transformers", "datasets", "orbax", "matplotlib", "pyarrow", "numpy"}
    assert not modules_after("import routerjax") & heavy
    assert not modules_after("import routerjax.cli") & heavy


@pytest.mark.parametrize("name", routerjax.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(routerjax, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rooter'"):
        _ = routerjax.rooter


def test_prompt_ids_are_the_first_bits_of_sha256() -> None:
    prompts = ["", "naïve ✓", "a" * 10_000]
    expected = [int.from_bytes(hashlib.sha256(p.encode()).digest()[:8], "big") for p in prompts]
    ids = prompt_ids(prompts).astype(np.uint64)
    np.testing.assert_array_equal((ids[:, 0] << np.uint64(32)) | ids[:, 1], np.asarray(expected, np.uint64))
    assert prompt_ids(["half an emoji \ud83d"]).shape == (1, 2)
    assert prompt_ids([]).shape == (0, 2)


def test_nearest_ignores_case_and_stays_silent_when_nothing_is_near() -> None:
    assert nearest("GPT-4-1106", ["gpt-4-1106-preview", "claude-1"]) == " (did you mean 'gpt-4-1106-preview'?)"
    assert nearest("zzz", ["gpt-4"]) == ""


def test_choose_takes_names_alone() -> None:
    known = {"platt": 1, "isotonic": 2}
    assert choose("isotonic", known, "the method") == 2
    with pytest.raises(InputError, match=r"^the method must be one of platt, isotonic, got 'plat' \(did you mean 'pl"):
        choose("plat", known, "the method")
    for name in (None, 3, ["platt"]):
        with pytest.raises(InputError, match="the method must be one of platt, isotonic, got"):
            choose(name, known, "the method")


@pytest.mark.parametrize("count", [1, 10, 11, 64])
def test_a_few_models_are_listed_many_are_counted(count: int) -> None:
    models = [f"model-{row}" for row in range(count)]
    assert [model_column(name, models, "the") for name in models] == list(range(count))
    listed = f": {', '.join(models)}" if count <= 10 else ""
    with pytest.raises(InputError) as raised:
        model_column("zzz", models, "the router's")
    assert str(raised.value) == f"'zzz' is not one of the router's {count} models{listed}"
