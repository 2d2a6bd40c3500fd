"""Tokenizers and sizes that would be endless work are refused before any."""

import json
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from routerjax import InputError, formats, load_router, save_router
from routerjax.features import TextTokenizer, load_encoder
from routerjax.sealing import SEAL, seal
from tests.encoders import change_json, save_tiny_classifier, save_tiny_encoder
from tests.routers import tiny_text_router
from tests.tokenizers_of_kinds import KINDS, make_tokenizer_of


def changed(kind: str = "WordPiece", **model: object) -> dict:
    content = json.loads(make_tokenizer_of(kind).to_str())
    content["model"] |= model
    return content


def with_normalizer(*steps: normalizers.Normalizer) -> dict:
    tokenizer = tokenizers.Tokenizer.from_str(make_tokenizer_of("WordPiece").to_str())
    tokenizer.normalizer = normalizers.Sequence(list(steps))
    return json.loads(tokenizer.to_str())


def with_split(pattern: str) -> dict:
    tokenizer = tokenizers.Tokenizer.from_str(make_tokenizer_of("WordPiece").to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return json.loads(tokenizer.to_str())


def without_types(content: dict) -> dict:
    """Remove the types, as earlier versions of the library wrote normalizers; it still reads them."""
    content["normalizer"].pop("type")
    for step in content["normalizer"]["normalizers"]:
        step.pop("type")
    return content


EXPONENTIAL = (
    "(a|a)*[bc]d",
    "(a?a?)*[bc]d",
    "(a{1,3})+[bc]d",
    "(?i:a|aa)+$",
    r"(?:\p{L}|\w)+[bc]d",
    "(aa?)*[bc]d",
    "(?:(?=a*)b){3}",
)
POLYNOMIAL = ("a*a*a*a*[bc]d", r"\s+\s+(x|\s*)$", "a?" * 12 + "[bc]d", "a{0,99}a{0,99}a{0,99}[bc]d")


def with_special_id(number: int) -> dict:
    content = changed()
    content["post_processor"]["special_tokens"]["<s>"]["ids"] = [number]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_normalizer(*[normalizers.Replace("a", "a" * 1000)] * 4), "its normalizer makes a text more than 1000 ti"),
        (with_normalizer(*[normalizers.Replace(Regex("a"), "a" * 40)] * 2), "its normalizer makes a text more than"),
        (with_split("(a+)+$"), r"the regular expression '\(a\+\)\+\$' repeats what is repeated"),
        (with_split("(?:x|(a|b*)c){2,}"), "repeats what is repeated"),
        *((with_split(regex), "repeats what is repeated or has alternatives") for regex in EXPONENTIAL),
        *((with_split(regex), "has too many repetitions in a row") for regex in POLYNOMIAL),
        (without_types(with_normalizer(*[normalizers.Replace("a", "a" * 1000)] * 4)), "its normalizer makes a text"),
        (without_types(with_normalizer(normalizers.Prepend("a" * 10**5))), "its normalizer makes a text"),
        (changed(unk_token="none"), "the unknown token 'none' is not in its vocabulary"),
        (changed(max_input_chars_per_word=10**9), "max_input_chars_per_word must be at most 1000, got 1000000000"),
        (changed("byte-level BPE", dropout=0.1), "dropout must be null, got 0.1: tokens would be random"),
        (with_special_id(4_000_000_000), "the tokenizer has the token id 4000000000"),
    ],
)
def test_a_tokenizer_without_bounds_is_refused(content: dict, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=message):
        TextTokenizer(json.dumps(content).encode(), 16).read(["aaaa" * 10])
    assert time.perf_counter() - start < 2


def test_what_tokenizers_have_is_not_refused() -> None:
    gpt_4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)"
    gpt_4o = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    by_threes = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))| ?[^\s\p{L}\p{N}]++[\r\n]*|'(?:[sdmt]|ll|ve|re)"
    regexes = (gpt_4, gpt_4o, by_threes, "(ab)+|[(+]+(x?)*")
    for content in (*map(with_split, regexes), *(changed(kind) for kind in KINDS)):
        TextTokenizer(json.dumps(content).encode(), 16).read(["a text"])


@pytest.mark.parametrize("number", [1000, 40_000_000])
def test_token_ids_beyond_the_table_are_refused(tmp_path: Path, number: int) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    content = json.loads((folder / "tokenizer.json").read_text())
    token = content["model"]["vocab"].pop("poem")
    content["model"]["vocab"]["poem"] = number  # no more tokens than before
    assert token < number
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"the tokenizer has the token id {number}, the encoder only"):
        load_encoder(folder, max_length=32)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
        {"intermediate_size": 10**12},
        {"hidden_size": 4 * 10**9},
    ],
)
def test_sizes_are_those_of_the_tensors(tmp_path: Path, sizes: dict[str, int]) -> None:
    folder = save_tiny_classifier(tmp_path / "classifier", ("big", "small"))
    change_json(folder / "config.json", **sizes)
    start = time.perf_counter()
    for load in (
        lambda: load_encoder(folder, max_length=32),
        lambda: formats.read(folder, "hf", strong="big", weak="small"),
    ):
        with pytest.raises(InputError, match=r"config.json: .* (is more than its tensors hold|must be an integer in)"):
            load()
    assert time.perf_counter() - start < 4


def test_sizes_of_a_router_are_those_of_its_tensors(tmp_path: Path) -> None:
    save_router(tiny_text_router(tmp_path), tmp_path / "saved")
    path = tmp_path / "saved" / "router.json"
    description = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL}
    description["featurizer"]["encoder"]["num_layers"] = 10**9
    path.write_text(json.dumps(seal(description)))  # forged with its hash
    with pytest.raises(InputError, match=r"router.json: num_layers 1000000000 .* is more than its tensors hold"):
        load_router(tmp_path / "saved")
