"""Tokenizers of folders are those that AutoTokenizer of transformers makes, and routers keep them."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers

from routerjax import InputError, load_router, save_router
from routerjax.features import TextTokenizer, load_encoder
from routerjax.pretrained import MINILM, RESOLVED_FILE, TOKENIZER_FILES, locate, read_tokenizer, resolved_tokenizer
from tests.encoders import TEXTS, change_json, make_tokenizer, save_tiny_encoder
from tests.routers import tiny_router
from tests.tokenizers_of_kinds import make_tokenizer_of

ROWS = 1000


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    addresses: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        addresses.append(address)
        raise OSError(f"no network: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert addresses == []


def save_tokenizer_of(kind: str, folder: Path, model_type: str, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    make_tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tokens(folder: Path, *texts: str, rows: int = ROWS, lowercase: bool = False) -> list[list[int]]:
    files = read_tokenizer(folder, vocab_size=rows, lowercase=lowercase).files
    return TextTokenizer(resolved_tokenizer(files), 64).token_ids(texts)


NAMED = {"cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
NAMED |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<pad>"}


@pytest.mark.parametrize(
    ("kind", "model_type", "config"),
    [
        ("WordPiece, cased", "bert", NAMED),  # whose text transformers lowers, as nothing is said of it
        ("WordPiece", "bert", {"do_lower_case": False, "strip_accents": True, **NAMED}),
        ("WordPiece, cased", "bert", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}),
        ("byte-level BPE", "roberta", {"add_prefix_space": True, **NAMED}),
        ("byte-level BPE, prefix space", "roberta", NAMED),
        ("Unigram", "xlm-roberta", {"add_prefix_space": False, **NAMED}),
        ("WordPiece", "bert", {**NAMED, "mask_token": "of", "additional_special_tokens": ["are"]}),
        # Refused before, as nothing here could follow it.
        ("Unigram", "bert", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **NAMED}),
        ("BPE of the whole text", "bert", {"tokenizer_class": "TokenizersBackend", "add_eos_token": False, **NAMED}),
    ],
)
def test_tokens_are_those_of_transformers(kind: str, model_type: str, config: dict, tmp_path: Path) -> None:
    folder = save_tokenizer_of(kind, tmp_path, model_type, **config)
    texts = ("What ARE primes of the form 4k?", "naïve façade 你好", "of<s>are", "")
    assert tokens(folder, *texts) == transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]


def test_a_file_that_says_all_is_kept_as_it_stands(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    read = read_tokenizer(folder, vocab_size=make_tokenizer().get_vocab_size())
    assert read.files == {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    # The class of transformers adds [MASK], for which this encoder has no row: it is read as any text.
    (ids,) = tokens(folder, "[MASK]", rows=make_tokenizer().get_vocab_size())
    assert max(ids) < make_tokenizer().get_vocab_size()


def test_the_files_of_minilm_need_no_library_and_mean_what_it_makes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = locate(MINILM)
    for name in ("config.json", *TOKENIZER_FILES):
        if (folder / name).exists():
            shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "added_tokens.json").write_text("{}")  # a file more, so that transformers is asked
    expected = read_tokenizer(tmp_path, vocab_size=30522)
    assert RESOLVED_FILE not in expected.files
    monkeypatch.setitem(sys.modules, "transformers", None)
    read = read_tokenizer(folder, vocab_size=30522)
    assert read.tokenizer_json == expected.tokenizer_json == (folder / "tokenizer.json").read_bytes()
    assert read.truncation == expected.truncation


def test_lower_case_comes_before_all_else(tmp_path: Path) -> None:
    folder = save_tokenizer_of("WordPiece, cased", tmp_path, "bert", do_lower_case=False, **NAMED)
    cased, lower = (tokens(folder, "PRIMES Of", lowercase=lowercase) for lowercase in (False, True))
    assert lower == tokens(folder, "primes of") != cased


def test_a_vocabulary_without_tokenizer_json_is_enough(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    folder = save_tiny_encoder(tmp_path / "encoder")
    (folder / "tokenizer.json").unlink()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    assert tokens(folder, *TEXTS, rows=len(vocabulary)) == [tokenizer.encode(text).ids for text in TEXTS]
    change_json(folder / "config.json", model_type="roberta")  # of which the library would make one of a few tokens
    with pytest.raises(InputError, match=r"RobertaTokenizer of transformers needs merges\.txt, vocab\.json"):
        tokens(folder, *TEXTS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"truncation_side": "both"}, "reads, got ValueError: Truncation side should be selected between"),
        (
            {"split_special_tokens": True},
            "does to a text what tokenizer.json cannot hold, such as split_special_tokens",
        ),
        ({"added_tokens_decoder": {"3": 4}}, "expected a tokenizer that transformers .* reads, got "),
    ],
)
def test_what_transformers_cannot_follow_is_one_line_and_runs_no_code(
    config: dict, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    map_to_code = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    folder = save_tokenizer_of("WordPiece", tmp_path, "bert", **{**NAMED, "auto_map": map_to_code, **config})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    with pytest.raises(InputError, match=message) as caught:
        read_tokenizer(folder, vocab_size=ROWS)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "vocab", "init_inputs", "fast_tokenizer_files"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_no_file_elsewhere_is_opened(name: str, key: str, tmp_path: Path) -> None:
    folder = save_tokenizer_of("WordPiece", tmp_path / "tokenizer", "bert", **NAMED)
    expected = tokens(folder, *TEXTS)
    make_tokenizer_of("WordPiece, cased").save(str(tmp_path / "tokenizer.json"))
    other = str(tmp_path / "tokenizer.json")
    change_json(folder / name, **{key: [other] if key in ("init_inputs", "fast_tokenizer_files") else other})
    assert tokens(folder, *TEXTS) == expected


def test_the_first_look_prints_nothing(tmp_path: Path) -> None:
    folder = save_tokenizer_of("WordPiece", tmp_path, "bert", **NAMED)
    call = f"read_tokenizer(pathlib.Path({str(folder)!r}), vocab_size={ROWS})"
    script = f"import pathlib; from routerjax.pretrained import read_tokenizer; {call}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_router_scores_without_transformers(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    change_json(folder / "tokenizer_config.json", mask_token="country")
    encoder = load_encoder(folder, max_length=48)
    assert set(encoder.files) == {RESOLVED_FILE}
    router = tiny_router(tmp_path, featurizer=encoder)
    save_router(router, tmp_path / "router")
    expected = router.scores(TEXTS)
    script = (
        f"import sys; sys.modules['transformers'] = None; from routerjax import load_router; "
        f"print(load_router({str(tmp_path / 'router')!r}).scores({TEXTS!r}).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(np.asarray(json.loads(done.stdout), np.float32), expected)
    # The kept tokenizer is part of the router, and the encoder's fingerprint includes it.
    (tmp_path / "router" / "featurizer" / RESOLVED_FILE).write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match=RESOLVED_FILE):
        load_router(tmp_path / "router")
