"""Settings of tokenizer_config.json that transformers follows are followed or refused, never passed over."""

import json

import pytest

from routerjax import InputError
from routerjax.features import TextTokenizer
from routerjax.pretrained import configured_tokenizer, truncation_side
from tests.tokenizers_of_kinds import make_tokenizer_of


def files_of(kind: str, **config: object) -> dict[str, bytes]:
    content = make_tokenizer_of(kind).to_str().encode()
    return {"tokenizer.json": content, "tokenizer_config.json": json.dumps(config).encode()}


def tokens(files: dict[str, bytes], model_type: str, text: str) -> list[int]:
    return TextTokenizer(configured_tokenizer(files, model_type), 32).token_ids([text])[0]


def last_word() -> tuple[str, int]:
    """The last plain word of the vocabulary, and its number."""
    vocabulary = make_tokenizer_of("WordPiece").get_vocab(with_added_tokens=False)
    return max(
        ((token, number) for token, number in vocabulary.items() if token.isascii() and token.isalpha()),
        key=lambda entry: entry[1],
    )


def test_what_changes_nothing_leaves_the_file_as_it_is() -> None:
    for config in ({}, {"do_lower_case": True}, {"tokenizer_class": "BertTokenizerFast", "strip_accents": None}):
        files = files_of("WordPiece", **config)
        assert configured_tokenizer(files, "bert") == files["tokenizer.json"]


def test_case_and_accents_are_those_of_the_configuration() -> None:
    text = "PRIMES façade"
    cased, lower = files_of("WordPiece, cased", do_lower_case=False), files_of("WordPiece, cased", do_lower_case=True)
    assert tokens(lower, "bert", text) == tokens(lower, "bert", "primes facade") != tokens(cased, "bert", text)
    # As in transformers, BERT's tokenizer lowers case where nothing is said of it, others do as tokenizer.json says.
    assert tokens(files_of("WordPiece, cased"), "bert", text) == tokens(lower, "bert", text)
    plain = files_of("WordPiece, cased", tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True)
    assert tokens(plain, "bert", text) == tokens(cased, "bert", text)


def test_a_space_before_the_text_is_that_of_the_configuration() -> None:
    with_space = files_of("byte-level BPE", add_prefix_space=True)
    assert tokens(with_space, "roberta", "primes") == tokens(files_of("byte-level BPE"), "roberta", " primes")
    without = files_of("byte-level BPE", add_prefix_space=False)
    content = json.loads(without["tokenizer.json"])
    content["pre_tokenizer"]["add_prefix_space"] = True
    without["tokenizer.json"] = json.dumps(content).encode()
    assert tokens(without, "roberta", "primes") == tokens(files_of("byte-level BPE"), "roberta", "primes")
    unigram = [tokens(files_of("Unigram", add_prefix_space=value), "xlm-roberta", "primes") for value in (True, False)]
    assert unigram[0] != unigram[1]


def test_special_tokens_of_the_configuration_are_found_in_a_text() -> None:
    word, number = last_word()
    plain, named = files_of("WordPiece"), files_of("WordPiece", mask_token=word)
    assert tokens(plain, "bert", word) == tokens(named, "bert", word) == [0, number, 2]
    assert number not in tokens(plain, "bert", f"zz{word}zz")
    assert number in tokens(named, "bert", f"zz{word}zz")


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_tokens_of_the_older_files_are_found_in_a_text(name: str) -> None:
    word, number = last_word()
    content = {word: number} if name == "added_tokens.json" else {"mask_token": {"content": word, "lstrip": False}}
    files = {**files_of("WordPiece"), name: json.dumps(content).encode()}
    assert number not in tokens(files_of("WordPiece"), "bert", f"zz{word}zz")
    assert number in tokens(files, "bert", f"zz{word}zz")
    # As in transformers, they count where the newer list of added tokens is not there.
    files["tokenizer_config.json"] = json.dumps({"added_tokens_decoder": {}}).encode()
    assert number not in tokens(files, "bert", f"zz{word}zz")
    files = {**files_of("WordPiece"), "added_tokens.json": json.dumps({word: number + 1}).encode()}
    with pytest.raises(
        InputError, match=f"the id of '{word}' must be that of tokenizer.json, {number}, got {number + 1}"
    ):
        configured_tokenizer(files, "bert")


@pytest.mark.parametrize(
    ("special", "is_normalized"),
    [
        ({}, True),
        ({"additional_special_tokens": ["P"]}, True),  # of this file, transformers does not count them
        ({"extra_special_tokens": ["P"]}, False),
        ({"mask_token": "P"}, False),
    ],
)
def test_an_added_token_is_found_in_any_case_unless_it_is_special(special: dict, is_normalized: bool) -> None:
    number = make_tokenizer_of("WordPiece, cased").get_vocab(with_added_tokens=False)["P"]
    files = {
        **files_of("WordPiece, cased"),  # whose text is lowered, which is the default of BERT's tokenizers
        "special_tokens_map.json": json.dumps(special).encode(),
        "added_tokens.json": json.dumps({"P": number}).encode(),
    }
    assert number in tokens(files, "bert", "zzPzz")
    assert (number in tokens(files, "bert", "zzpzz")) == is_normalized


def test_the_side_is_that_of_the_configuration_or_the_tokenizer() -> None:
    assert truncation_side(files_of("Unigram")) == "right"
    assert truncation_side(files_of("Unigram", truncation_side="left")) == "left"
    files = files_of("Unigram")
    direction = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    content = {**json.loads(files["tokenizer.json"]), "truncation": direction}
    assert truncation_side({**files, "tokenizer.json": json.dumps(content).encode()}) == "left"


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("Unigram", {"tokenizer_class": "T5Tokenizer"}, "tokenizer_class must be one of"),
        ("Unigram", {"tokenizer_class": "BertTokenizer", "do_lower_case": True}, "do_lower_case must be left out"),
        ("WordPiece", {"do_lower_case": "yes"}, "do_lower_case must be true or false, got 'yes'"),
        ("WordPiece", {"split_special_tokens": True}, "split_special_tokens must be false"),
        (
            "WordPiece",
            {"mask_token": "<mask>"},
            "a special or added token must be a token of tokenizer.json, got '<mask>'",
        ),
        (
            "byte-level BPE",
            {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
            "add_prefix_space must be that of tokenizer.json, got True",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(kind: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configured_tokenizer(files_of(kind, **config), "bert")
