"""Bundles run without routerjax and do what the router does, or are not written."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, Router, features, formats
from routerjax.formats import stablehlo as bundle_module
from routerjax.formats.golden import golden_prompts
from tests.bundles import PROGRAM
from tests.encoders import TEXTS, save_tiny_encoder
from tests.routers import tiny_memory_router, tiny_router

PROMPTS = [*TEXTS, "", "primes " * 100, "half an emoji \ud83d"]

USER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from routerjax_runtime import load
bundle = load(sys.argv[1])
request = json.load(open(sys.argv[2]))
print(json.dumps({
    "text": bundle.win_prob(request["prompts"]).tolist(),
    "embedding": [bundle.win_prob(embedding=rows).tolist() for rows in request["embedding"]],
    "tokens": [bundle.win_prob(token_ids=ids, attention_mask=mask).tolist() for ids, mask in request["tokens"]],
    "modules": [name for name in sys.modules if name.split(".")[0] in ("routerjax", "flax", "torch")],
}))
"""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    """Router of an encoder that puts a prompt before each text and takes its first token."""
    folder = tmp_path_factory.mktemp("router")
    encoder = save_tiny_encoder(folder / "encoder")
    (encoder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    settings = {"prompts": {"query": "prove that "}, "default_prompt_name": "query"}
    (encoder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return tiny_router(folder, threshold=0.5)


@pytest.fixture(scope="module")
def bundle(router: Router, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    differences = formats.export(router, folder, "stablehlo")
    assert set(differences) == {"from_embedding", "from_token_ids", "from_text"}
    assert differences["from_embedding"] <= 1e-6
    assert max(differences.values()) <= 1e-5
    return folder


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-I", *arguments], capture_output=True, text=True, check=False)


def test_a_process_without_routerjax_gets_the_same_at_any_batch_and_length(
    router: Router, bundle: Path, tmp_path: Path
) -> None:
    embedding = router.featurizer.encode([f"{TEXTS[row % 3]} {row}" for row in range(70)])
    batches = [embedding[:1], embedding[:3], embedding]
    tokens = []
    for count, length in ((1, 2), (5, 11), (3, 48)):
        query = router.featurizer.tokenize(PROMPTS[:count])
        ids, mask = (np.zeros((count, length), int) for _ in range(2))
        width = min(length, query["token_ids"].shape[1])
        ids[:, :width], mask[:, :width] = query["token_ids"][:, :width], query["attention_mask"][:, :width]
        tokens.append((ids, mask))
    request = {
        "prompts": PROMPTS[:5],
        "embedding": [rows.tolist() for rows in batches],
        "tokens": [(ids.tolist(), mask.tolist()) for ids, mask in tokens],
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    finished = run_python("-c", USER, str(bundle), str(tmp_path / "request.json"))
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["modules"] == []
    np.testing.assert_allclose(answer["text"], router.win_prob(PROMPTS[:5]), atol=1e-5)
    for rows, actual in zip(batches, answer["embedding"], strict=True):
        expected = router.win_prob(features.Embeddings(rows, router.featurizer.fingerprint))
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    apply = jax.jit(router.featurizer.encoder.module.apply)
    for (ids, mask), actual in zip(tokens, answer["tokens"], strict=True):
        embedding = apply(router.featurizer.encoder.variables, {"token_ids": ids, "attention_mask": mask})
        expected = router.win_prob(features.Embeddings(np.asarray(embedding), router.featurizer.fingerprint))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_program_scores_prompts_and_routes(router: Router, bundle: Path) -> None:
    finished = run_python(str(bundle / PROGRAM), *TEXTS)
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    win_prob = router.win_prob(TEXTS)
    np.testing.assert_allclose([row["win_prob"] for row in rows], win_prob, atol=1e-5)
    assert [row["model"] for row in rows] == ["big" if p >= 0.5 else "small" for p in win_prob]


def test_the_bundle_describes_itself(router: Router, bundle: Path) -> None:
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert description["needs"]["jax"] == jax.__version__
    assert description["featurizer"] == router.featurizer.to_dict()
    assert description["golden_prompts"] == list(golden_prompts())
    assert {*description["sha256"], "bundle.json"} == {*os.listdir(bundle)} - {"__pycache__"}
    functions = [jax.export.deserialize(bytearray((bundle / f"{n}.stablehlo").read_bytes())) for n in (
        "from_embedding", "from_token_ids")]  # fmt: skip
    assert [str(function.in_avals[-1].shape) for function in functions] == ["(batch, 16)", "(batch, length)"]
    # Weights are arguments, so the programs are small.
    assert (bundle / "from_token_ids.stablehlo").stat().st_size < 200_000


def test_a_bundle_that_differs_is_an_error_and_is_kept(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(router, variables=jax.tree.map(lambda leaf: leaf * 1.01, router.variables))
    monkeypatch.setattr(bundle_module, "export_from_embedding", exporting_constants_of(wrong))
    with pytest.raises(formats.VerificationError, match=r"from_embedding differs from the golden scores by .*e-0\d"):
        formats.export(router, tmp_path / "bundle", "stablehlo")
    assert os.listdir(tmp_path) == ["bundle.rejected"]


def exporting_constants_of(wrong: Router):
    """An export whose function ignores the weights it is given: what verification is there to find."""
    original = bundle_module.export_from_embedding

    def export_wrong(router: Router) -> jax.export.Exported:
        def output_fn():
            compute = type(router).output_fn(wrong)
            return lambda variables, query: compute(wrong.variables, query)

        double = dataclasses.replace(router)
        object.__setattr__(double, "output_fn", output_fn)
        return original(double)

    return export_wrong


def test_given_embeddings_and_a_memory_export_too(tmp_path: Path) -> None:
    router = tiny_memory_router(tmp_path)
    differences = formats.export(router, tmp_path / "bundle", "stablehlo")
    assert list(differences) == ["from_embedding"]
    finished = run_python(str(tmp_path / "bundle" / PROGRAM), "some text")
    assert finished.returncode == 1
    assert finished.stderr == "this router takes embeddings, not text: give embedding=...\n"


def test_refusals(router: Router, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'bigg' is not one of the router's 3 models"):
        formats.export(router.with_pair("bigg"), tmp_path / "bundle", "stablehlo")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        formats.export(router, tmp_path / "there", "stablehlo")
    assert os.listdir(tmp_path) == ["there"]
