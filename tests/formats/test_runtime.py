"""The program of a bundle: what it refuses, and what a prompt costs it."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import unittest.mock
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from routerjax import formats
from routerjax.pretrained import file_sha256
from tests.bundles import PROGRAM, forge, loader
from tests.encoders import TEXTS
from tests.json_changes import changes
from tests.routers import tiny_router


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    formats.export(
        tiny_router(folder, threshold=0.5), folder / "bundle", "stablehlo", prompts=[*TEXTS, "broken \ud83d"]
    )
    return folder / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def program(bundle: Path) -> ModuleType:
    return loader(bundle)


def run_program(bundle: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", str(bundle / PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refuse(program: ModuleType, bundle: Path, message: str) -> None:
    with pytest.raises(program.BundleError, match=message) as caught:
        program.Bundle(bundle)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_any_change_of_the_description_is_refused(program: ModuleType, bundle: Path) -> None:
    path = bundle / "bundle.json"
    content, count = json.loads(path.read_text()), 0
    for changed in changes(content):
        path.write_text(json.dumps(changed))
        refuse(
            program, bundle, r"bundle\.json(: expected schema| has the schema|.* was changed after routerjax wrote it)"
        )
        count += 1
    assert count > 60
    path.write_text(json.dumps(content, sort_keys=True))  # no change of what it says
    assert program.Bundle(bundle).description == content


@pytest.mark.parametrize("arguments", [["--verify"], ["a prompt"]])
def test_an_exchanged_pair_is_said_in_one_line(bundle: Path, arguments: list[str]) -> None:
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "models": content["models"][::-1]}))
    finished = run_program(bundle, *arguments)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.count("\n") == 1
    assert "bundle.json was changed after routerjax wrote it" in finished.stderr
    assert "routerjax export" in finished.stderr


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format": NaN}', '{"format": 1e999}', "[" * 100_000, "\xff", '{"format": "x"}', "{}"]
)
def test_descriptions_that_are_none(program: ModuleType, bundle: Path, content: str) -> None:
    (bundle / "bundle.json").write_text(content, encoding="latin-1")
    refuse(program, bundle, r"bundle\.json(: expected schema| is damaged)")


def test_damaged_files_and_other_scores_and_an_older_jax(program: ModuleType, bundle: Path) -> None:
    hashes = json.loads((bundle / "bundle.json").read_text())["sha256"]
    weights = bundle / "router.safetensors"
    safetensors.numpy.save_file(
        {name: leaf * 1.01 for name, leaf in safetensors.numpy.load_file(weights).items()}, weights
    )
    refuse(program, bundle, "router.safetensors is damaged: its sha256 is not that in bundle.json")
    finished = run_program(bundle, "--verify")
    assert finished.returncode == 1
    assert finished.stderr.strip().endswith("router.safetensors is damaged: its sha256 is not that in bundle.json")
    assert finished.stderr.count("\n") == 1
    forge(bundle, needs={"jax": "99.1.0"}, sha256={**hashes, weights.name: file_sha256(weights)})
    refuse(program, bundle, "needs jax 99.1.0 or newer, got jax .*: pip install 'jax>=99.1.0'")


def test_files_are_regular_ones_of_the_bundle(program: ModuleType, bundle: Path, tmp_path: Path) -> None:
    hashes = json.loads((bundle / "bundle.json").read_text())["sha256"]
    (tmp_path / "secret").write_text("of the user's")
    for name in ("../secret", str(tmp_path / "secret"), "\x1b[2J"):
        forge(bundle, sha256={**hashes, name: "0"})
        refuse(program, bundle, "is no file of this bundle")
    assert "\x1b" not in run_program(bundle, "--verify").stderr
    forge(bundle, sha256={name: value for name, value in hashes.items() if name != "router.safetensors"})
    refuse(program, bundle, "'router.safetensors' is no file of this bundle")
    forge(bundle, sha256=hashes)
    tokenizer = bundle / "tokenizer.json"
    tokenizer.rename(tmp_path / "tokenizer.json")
    refuse(program, bundle, "tokenizer.json is missing, or no regular file")
    tokenizer.symlink_to(tmp_path / "tokenizer.json")
    refuse(program, bundle, "tokenizer.json is a link to a file outside of the bundle")
    tokenizer.unlink()
    os.mkfifo(tokenizer)
    refuse(program, bundle, "tokenizer.json is missing, or no regular file")


def test_a_snapshot_in_hugging_faces_cache_is_links(exported: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--me--router" / "blobs", tmp_path / "models--me--router" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for place, path in enumerate(path for path in exported.iterdir() if path.is_file()):
        shutil.copy(path, blobs / str(place))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(place)))
    finished = run_program(snapshot, "a prompt")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["model"] in ("big", "small")


def test_no_control_character_reaches_the_terminal(bundle: Path) -> None:
    prompt, model = "hidden \x1b[2J\x7f\u202e\x9b", "big\u202e\x9b\x1b"
    forge(bundle, models=[model] * 3)
    finished = run_program(bundle, prompt)
    assert finished.returncode == 0, finished.stderr
    assert all(" " <= character <= "~" for character in finished.stdout.removesuffix("\n"))
    row = json.loads(finished.stdout)
    assert (row["prompt"], row["model"]) == (prompt, model)


def test_a_prompt_costs_one_row_and_the_tokenizer_is_parsed_once(
    program: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, parsed = [], []
    deserialize, from_file = jax.export.deserialize, tokenizers.Tokenizer.from_file

    def recording(content: bytearray) -> SimpleNamespace:
        exported = deserialize(content)

        def call(*arguments):
            shapes.append(arguments[-1].shape)  # while it is traced: once for each shape
            return exported.call(*arguments)

        return SimpleNamespace(call=call)

    def parse(path: str) -> tokenizers.Tokenizer:
        parsed.append(path)
        return from_file(path)

    monkeypatch.setattr(jax.export, "deserialize", recording)
    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_file=parse))
    opened = program.Bundle(bundle)
    one = [opened.win_prob([text]) for text in TEXTS]
    np.testing.assert_allclose(np.concatenate(one), opened.win_prob(TEXTS), atol=1e-6)
    assert opened.win_prob([]).shape == (0,)
    assert shapes == [(1, 16), (4, 16)]
    opened.win_prob(embedding=np.ones((1, 16)))
    opened.win_prob(embedding=np.ones((67, 16)))
    assert shapes[2:] == [(1, 16), (64, 16), (4, 16)]
    assert len(parsed) == 1


def test_weights_are_put_on_the_device_once(program: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, jit = [], jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda function: lambda *arguments: given.append(arguments) or jit(function)(*arguments)
    )
    opened = program.Bundle(bundle)
    for prompt in ("a prompt", "another"):
        opened.win_prob([prompt])
    weights, again = (jax.tree.leaves([each for each in call if isinstance(each, dict)]) for call in given)
    assert weights
    assert all(isinstance(leaf, jax.Array) for leaf in weights)  # numpy's would be copied by each call
    assert all(leaf is other for leaf, other in zip(weights, again, strict=True))


def test_threads_share_a_bundle(program: ModuleType, bundle: Path) -> None:
    opened, texts = program.load(bundle), [f"prime {row}" for row in range(24)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        one = list(pool.map(opened.win_prob, texts))
    assert all(isinstance(win_prob, float) for win_prob in one)
    np.testing.assert_allclose(one, opened.win_prob(texts), atol=1e-6)
    assert [opened.route(text, threshold=0.5) for text in texts[:3]] == opened.route(texts[:3])
    for wrong in (float("nan"), 2, -0.1, "0.5"):
        with pytest.raises(program.BundleError, match=r"threshold must be a number in \[0, 1\], or inf"):
            opened.route(texts[:3], threshold=wrong)


def test_what_computes_a_bundle_is_imported_with_it(bundle: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import routerjax_runtime; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code, str(bundle)]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "onnxruntime", "tokenizers", "safetensors", "routerjax"} & set(imported)


def test_inputs_that_the_functions_cannot_take(program: ModuleType, bundle: Path) -> None:
    opened = program.Bundle(bundle)
    for query in (
        {"embedding": np.ones((1, 16)), "prompts": ["a"]},
        {"token_ids": np.ones((1, 2), int)},
        {"text": "a"},
    ):
        with pytest.raises(program.BundleError, match=r"give prompts, or embedding=\.\.\., or token_ids="):
            opened.win_prob(**query)
    with pytest.raises(program.BundleError, match="at most 48 tokens a prompt, got 49"):
        opened.win_prob(token_ids=np.ones((1, 49), int), attention_mask=np.ones((1, 49), int))
    for prompts in (None, 3, b"text", {"a"}, {"a": 1}, iter(["a"]), (prompt for prompt in ["a"])):
        with pytest.raises(program.BundleError, match="prompts must be a text or a list of texts, got "):
            opened.win_prob(prompts)
    with pytest.raises(program.BundleError, match="row 1: a prompt must be text, got 3"):
        opened.win_prob(["a", 3])
    embedding = np.ones((2, 16), np.float32)
    for wrong in (
        embedding[:, :3],
        embedding[0],
        np.full((2, 16), np.nan),
        embedding.astype(str),
        None,
        1j * embedding,
    ):
        with pytest.raises(program.BundleError, match="embedding") as caught:
            opened.win_prob(embedding=wrong)
        assert "\n" not in str(caught.value)
    ids, mask = np.ones((2, 32), int), np.ones((2, 32), int)
    assert opened.win_prob(token_ids=ids, attention_mask=mask.astype(bool)).shape == (2,)
    for wrong in ((ids, mask[:, :1]), (ids[0], mask[0]), (-ids, mask), (10**6 * ids, mask), (ids, 7 * mask)):
        with pytest.raises(program.BundleError, match=r"token_ids .*attention_mask"):
            opened.win_prob(token_ids=wrong[0], attention_mask=wrong[1])
    with (
        unittest.mock.patch.object(sys, "argv", [PROGRAM, "--verify", "a prompt"]),
        pytest.raises(SystemExit, match="2"),
    ):
        program.main()
    with pytest.raises(program.BundleError, match="token_ids must hold integers, got float64"):
        opened.win_prob(token_ids=1.5 * ids, attention_mask=mask)


def test_both_sides_have_one_canonical_form(program: ModuleType, bundle: Path) -> None:
    values = {"b": [1, -0.0, 1e-7, 1e22, True, None], "a": {"é\u202e": '\ud83d \x7f"\\/', "10": {}, "9": []}, "": "😀"}
    forge(bundle, provenance=values)
    assert program.Bundle(bundle).description["provenance"] == values
