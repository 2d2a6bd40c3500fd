"""Contamination and similarity of data sets against scikit-learn, and numbers worked out by hand."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from routerjax import InputError, data
from routerjax.data import contamination


def embeddings(rows: int, seed: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def contaminated(count: int = 3, **changes: object) -> data.Contamination:
    """Compare evaluation and training prompts that have nothing in common, unless changed."""
    arguments = {
        "eval_prompts": [f"question {row}" for row in range(count)],
        "train_prompts": [f"exercise {row}" for row in range(count)],
        "eval_embedding": np.eye(2 * count)[:count],
        "train_embedding": np.eye(2 * count)[count:],
        "threshold": 0.95,
    } | changes
    threshold = arguments.pop("threshold")
    return data.contaminated(*arguments.values(), threshold=threshold)


class TestMaxSimilarity:
    @pytest.mark.parametrize("block", [1, 100, 2**24])
    def test_against_scikit_learn(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contamination, "BLOCK_ELEMENTS", block)
        contamination._nearest.clear_cache()  # compiled for another block
        rng = np.random.default_rng(0)
        evaluated = embeddings(37, 1) * rng.uniform(0.01, 100, (37, 1)).astype(np.float32)
        train = embeddings(23, 2) * rng.uniform(0.01, 100, (23, 1)).astype(np.float32)
        expected = cosine_similarity(evaluated.astype(np.float64), train.astype(np.float64))
        nearest = data.max_similarity(evaluated, train)
        np.testing.assert_allclose(nearest.similarity, expected.max(axis=1), atol=1e-6)
        np.testing.assert_array_equal(nearest.train_index, expected.argmax(axis=1))
        assert (nearest.similarity.dtype, nearest.train_index.dtype) == (np.float32, np.int32)
        contamination._nearest.clear_cache()

    def test_a_block_holds_no_more_than_it_may(self) -> None:
        """The largest intermediate of 5,000 by 100,000 prompts is a block, not the 500 million similarities."""
        text = contamination._nearest.lower(embeddings(5000, 0, 4), embeddings(100_000, 1, 4)).as_text()
        shapes = re.findall(r"tensor<((?:\d+x)+)[fi]32>", text)
        assert shapes
        assert max(np.prod([int(size) for size in shape[:-1].split("x")]) for shape in shapes) <= 2**24

    def test_the_first_of_equals(self) -> None:
        train = embeddings(3, 0)[[2, 0, 1, 0]]
        assert data.max_similarity(embeddings(3, 0)[:1], train).train_index.tolist() == [1]

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_lengths_whose_squares_float32_cannot_hold(self, scale: float) -> None:
        evaluated = embeddings(3, 0) * np.float32(scale)
        np.testing.assert_allclose(data.max_similarity(evaluated, embeddings(3, 0)).similarity, 1, atol=1e-6)

    @pytest.mark.parametrize("side", ["eval_embedding", "train_embedding"])
    def test_what_has_no_direction_is_refused(self, side: str) -> None:
        good = {"eval_embedding": embeddings(4, 0), "train_embedding": embeddings(5, 1)}
        bad = good[side].copy()
        bad[2] = 0
        with pytest.raises(InputError, match=rf"{side}: row 2 is all zero and has no direction \(1 such rows\)"):
            data.max_similarity(**good | {side: bad})
        bad[1, 3], bad[3, 0] = np.nan, np.inf
        with pytest.raises(InputError, match=rf"{side}: row 1 must be finite \(2 such rows\)"):
            data.max_similarity(**good | {side: bad})
        for shape in ((0, 16), (4,), (4, 0)):
            with pytest.raises(InputError, match=rf"{side} must have shape \[prompts, embed\]"):
                data.max_similarity(**good | {side: np.ones(shape)})

    def test_widths_must_agree(self) -> None:
        with pytest.raises(InputError, match="must be of one width, got 16 and 8: use the same encoder"):
            data.max_similarity(embeddings(4, 0), embeddings(4, 0, width=8))


class TestContaminated:
    def test_by_text_and_by_direction(self) -> None:
        angle = np.arccos([0.951, 0.949])
        near = np.zeros((2, 6))
        near[:, 3], near[:, 0] = np.cos(angle), np.sin(angle)
        actual = contaminated(
            eval_prompts=["What\tis  RNA?", "near", "not near", "other"],
            train_prompts=["exercise", "what is rna?", "What is RNA?"],
            eval_embedding=np.concatenate([np.eye(6)[:1], near, np.eye(6)[1:2]]),
        )
        assert actual.mask.tolist() == [True, True, False, False]
        assert actual.same_text.tolist() == [True, False, False, False]
        # The text's own prompt although its embedding is no nearer than another; the first of two.
        assert actual.train_index[:3].tolist() == [1, 0, 0]
        np.testing.assert_allclose(actual.similarity, [0, 0.951, 0.949, 0], atol=1e-6)

    def test_nothing_in_common(self) -> None:
        assert not contaminated().mask.any()

    def test_everything_in_common(self) -> None:
        actual = contaminated(4, eval_embedding=embeddings(4, 0), train_embedding=embeddings(4, 0)[::-1] * 3)
        assert actual.mask.all()
        assert not actual.same_text.any()
        assert actual.train_index.tolist() == [3, 2, 1, 0]

    def test_the_threshold(self) -> None:
        evaluated, train = embeddings(50, 0, width=3), embeddings(20, 1, width=3)
        similarity = cosine_similarity(evaluated, train).max(axis=1)
        names = {"eval_prompts": list("a" * 50), "train_prompts": list("b" * 20)}
        for threshold in (0.5, 0.9, 0.99):
            actual = contaminated(**names, eval_embedding=evaluated, train_embedding=train, threshold=threshold)
            np.testing.assert_array_equal(actual.mask, similarity >= threshold)

    @pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan"), 95])
    def test_thresholds_that_are_no_cosine(self, threshold: float) -> None:
        with pytest.raises(InputError, match=r"threshold must be a cosine in \(0, 1\]"):
            contaminated(threshold=threshold)

    @pytest.mark.parametrize("side", ["eval", "train"])
    def test_one_embedding_a_text(self, side: str) -> None:
        message = rf"{side}_embedding must have one row for each of the 2 texts of {side}_prompts, got shape \(3, 6\)"
        with pytest.raises(InputError, match=message):
            contaminated(**{f"{side}_prompts": ["one", "two"]})


class TestNormalizedText:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Stra\u00dfe", "STRASSE"),
            ("\uff21\uff22\uff23", "abc"),  # full-width letters
            ("e\u0301tude", "\u00e9tude"),  # a letter and its accent, or both as one
            ("x\u00b2 \ufb01", "x2 fi"),
            (" two\u00a0\u2003words \r\n", "two words"),
            ("\u0390", "\u03aa\u0301"),  # casefolding takes the first apart, and the second half
            ("half \ud83d", "HALF \ud83d"),  # a lone surrogate, as scraped text has it
        ],
    )
    def test_the_same(self, one: str, other: str) -> None:
        assert data.normalized_text(one) == data.normalized_text(other)

    @pytest.mark.parametrize(("one", "other"), [("a b", "ab"), ("a.", "a"), ("e", "\u00e9"), ("1", "2")])
    def test_not_the_same(self, one: str, other: str) -> None:
        assert data.normalized_text(one) != data.normalized_text(other)

    @given(st.text())
    def test_laws(self, text: str) -> None:
        normal = data.normalized_text(text)
        assert data.normalized_text(f"\n{text}\t ") == normal
        assert data.normalized_text(unicodedata.normalize("NFD", text)) == normal
        assert "  " not in normal


class TestDatasetSimilarity:
    def test_by_hand(self) -> None:
        evaluated = np.asarray([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
        train = np.asarray([[1.0, 0.0], [1.0, 1.0]])
        actual = data.dataset_similarity(evaluated, train)
        best = [7 / 5 / np.sqrt(2), 1 / np.sqrt(2), -1 / np.sqrt(2)]
        assert actual.value == pytest.approx(np.mean(best), abs=1e-6)
        assert actual.low >= -1 / np.sqrt(2) - 1e-6
        assert actual.high <= 7 / 5 / np.sqrt(2) + 1e-6

    def test_the_interval_is_that_of_a_mean(self) -> None:
        evaluated, train = embeddings(400, 0), embeddings(30, 1)
        best = cosine_similarity(evaluated, train).max(axis=1)
        actual = data.dataset_similarity(evaluated, train, num_samples=4000)
        half_width = 1.96 * best.std() / np.sqrt(400)
        expected = [best.mean() - half_width, best.mean() + half_width]
        np.testing.assert_allclose([actual.low, actual.high], expected, atol=3e-3)
        assert actual.low < actual.value < actual.high

    def test_seeds(self) -> None:
        evaluated, train = embeddings(40, 0), embeddings(30, 1)
        again = data.dataset_similarity(evaluated, train, seed=3)
        assert data.dataset_similarity(evaluated, train, seed=3) == again
        assert data.dataset_similarity(evaluated, train, seed=4).low != again.low
        with pytest.raises(InputError, match="num_samples must be at least 1; got 0"):
            data.dataset_similarity(evaluated, train, num_samples=0)

    def test_a_set_is_as_near_as_can_be_to_what_holds_it(self) -> None:
        train = embeddings(30, 1)
        actual = data.dataset_similarity(train[:9], train)
        np.testing.assert_allclose([actual.low, actual.high], [1, 1], atol=1e-6)
