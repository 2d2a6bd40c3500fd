"""Tokens of long texts: those of the whole text, wherever it is cut, for about the work of a short one."""

from collections.abc import Sequence

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from routerjax import InputError
from routerjax.config import Truncation
from routerjax.features import TextTokenizer
from routerjax.features.cutting import Cut, cut
from tests.tokenizers_of_kinds import KINDS, SENTENCES, make_tokenizer_of

SIDES: tuple[Truncation, ...] = ("left", "right", "middle")
LENGTH = 10
WORDS = [word for sentence in SENTENCES for word in sentence.split(" ")]
SEPARATORS = (
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\t ",
    "",
    "\u00a0",
    "\u3000",
    " \u0301",
    "<s>",
    "</s> ",
    "é",
    "\U0001f600",
    "-",
)


def cut_whole(plain: tokenizers.Tokenizer, text: str, side: Truncation) -> list[int]:
    """Cut the library's tokens of the whole text: keep its beginning, its end, or both."""
    before, *content, after = plain.encode(text).ids
    count = LENGTH - 2
    if len(content) > count:
        first = {"left": 0, "right": count, "middle": (count + 1) // 2}[side]
        content = content[:first] + content[len(content) - (count - first) :]
    return [before, *content, after]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Up to thousands of characters, of words or of one character again and again."""
    parts = draw(st.lists(st.tuples(st.sampled_from([*WORDS, "a" * 700, " " * 300]), st.sampled_from(SEPARATORS))))
    once = "".join(f"{word}{separator}" for word, separator in parts) or draw(st.characters(exclude_categories=["Cs"]))
    text = once * draw(st.integers(1, max(1, 4000 // len(once))))
    return text + draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))


@hypothesis.given(text=texts())
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_tokens_are_those_of_the_whole_text(kind: str, text: str) -> None:
    content = make_tokenizer_of(kind).to_str().encode()
    # Read from the same text: scores that are written and read again differ in their last digit, which decides ties.
    plain = tokenizers.Tokenizer.from_str(content.decode())
    is_long = len(plain.encode(text).ids) > LENGTH
    for side in SIDES:
        read = TextTokenizer(content, LENGTH, truncation=side).read([text])
        if len(text) <= 1000 * LENGTH:
            assert read.token_ids[0].tolist() == cut_whole(plain, text, side), side
            assert read.is_cut.tolist() == [is_long]


def test_a_token_that_holds_a_space_is_found_at_the_end_of_a_window() -> None:
    crossing = make_tokenizer_of("WordPiece")
    crossing.add_tokens(["new york"])
    text = "a new york " * 300
    read = TextTokenizer(crossing.to_str().encode(), LENGTH).read([text])
    assert read.token_ids[0].tolist() == cut_whole(crossing, text, "right")


def read_and_count(kind: str, text: str, side: Truncation) -> tuple[Cut, int]:
    """A text cut to 62 tokens, and how many characters the tokenizer was handed for that."""
    plain, handed = make_tokenizer_of(kind), []

    def encode(texts: Sequence[str]) -> list[list[int]]:
        handed.extend(map(len, texts))
        return [encoding.ids for encoding in plain.encode_batch(list(texts), add_special_tokens=False)]

    (cut_text,) = cut([text], encode, count=62, characters=64_000, side=side)
    return cut_text, sum(handed)


@pytest.mark.parametrize("side", SIDES)
def test_a_long_text_costs_about_what_a_short_one_does(kind: str, side: Truncation) -> None:
    _, short = read_and_count(kind, "lorem ipsum dolor " * 60, side)
    long, handed = read_and_count(kind, "lorem ipsum dolor " * 500_000, side)  # 9 MB
    assert long.is_cut
    assert len(long.token_ids) == 62
    assert handed <= 8 * short


@pytest.mark.parametrize("character", [" ", "a", "\x00", "字", "\u0301"])
def test_what_makes_few_tokens_is_not_read_to_its_end(kind: str, character: str) -> None:
    long, handed = read_and_count(kind, character * 5_000_000, "right")
    assert long.is_cut
    assert handed <= 3 * 64_000


def test_other_truncations_are_refused() -> None:
    content = make_tokenizer_of("WordPiece").to_str().encode()
    with pytest.raises(InputError, match="truncation must be one of left, right, middle, got 'front'"):
        TextTokenizer(content, LENGTH, truncation="front")
    with pytest.raises(InputError, match="max_length must be at least the 2 special tokens"):
        TextTokenizer(content, 1)
    fingerprints = {TextTokenizer(content, LENGTH, truncation=side).fingerprint for side in SIDES}
    assert len(fingerprints) == 3
    np.testing.assert_equal(TextTokenizer(content, 2).token_ids(["a", "b c"]), [[0, 2], [0, 2]])
