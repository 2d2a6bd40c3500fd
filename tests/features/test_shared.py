"""Embedding shared out over processes, and in space that does not grow with the number of prompts."""

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, features
from routerjax.features import EmbeddingCache, Featurizer, SentenceFeaturizer, sentence, shared_query
from tests.encoders import WIDTH, save_tiny_encoder
from tests.routers import tiny_router, tiny_text_router

PROMPTS = [f"prove that {row % 21} primes" for row in range(30)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceFeaturizer:
    return features.load_encoder(save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny"), max_length=40)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cache", "shared"):
        monkeypatch.setattr(f"routerjax.features.{module}.PROMPTS_PER_PART", 4)


def in_processes(count: int, run: Callable[[int, Callable[[], object]], object]) -> list:
    """Run ``run(index, barrier)`` as so many processes would, which share files alone; what each returns or raises."""
    barrier = threading.Barrier(count, timeout=60)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, index, barrier.wait) for index in range(count)]
        return [future.exception() or future.result() for future in futures]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_processes_share_the_work_and_have_the_same_embeddings(
    encoder: SentenceFeaturizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    embed, rows = sentence._embed, []

    def counted(module: object, variables: object, query: dict) -> object:
        rows.append(int(query["attention_mask"].any(axis=1).sum()))
        return embed(module, variables, query)

    expected = encoder.encode(PROMPTS)
    monkeypatch.setattr(sentence, "_embed", counted)

    def run(index: int, barrier: Callable[[], object]) -> np.ndarray:
        # Each on a file of its own, so that nothing but the parts is shared.
        with EmbeddingCache(tmp_path / f"{index}.sqlite") as cache:
            return shared_query(encoder, PROMPTS, cache, index, count, barrier)["embedding"]

    for embedding in in_processes(count, run):
        np.testing.assert_array_equal(embedding, expected)
    assert sum(rows) == 21
    assert list(tmp_path.rglob("*.npy")) == []


@pytest.mark.usefixtures("small_parts")
def test_a_process_that_fails_does_not_hold_up_the_others(encoder: SentenceFeaturizer, tmp_path: Path) -> None:
    class Broken(SentenceFeaturizer):
        def encode(self, *arguments: object, **options: object) -> np.ndarray:
            raise InputError("no such encoder")

    broken = Broken(**{name: getattr(encoder, name) for name in SentenceFeaturizer.__dataclass_fields__})

    def run(index: int, barrier: Callable[[], object]) -> object:
        with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
            return shared_query(broken if index else encoder, PROMPTS, cache, index, 2, barrier)

    first, second = in_processes(2, run)
    assert "process 1 did not embed its part of the prompts" in str(first)
    assert "no such encoder" in str(second)

    # What was written is there for the next run, and damage to it is found.
    (kept, *_) = (tmp_path / "shared").iterdir()
    kept.write_bytes(kept.read_bytes()[:-4])

    def again(index: int, barrier: Callable[[], object]) -> object:
        with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
            return shared_query(encoder, PROMPTS, cache, index, 2, barrier)

    assert all(f"{kept} is damaged: remove it" in str(error) for error in in_processes(2, again))
    kept.unlink()
    first, second = in_processes(2, again)
    np.testing.assert_array_equal(first["embedding"], second["embedding"])


def test_tokens_are_not_shared(tmp_path: Path) -> None:
    featurizer: Featurizer = tiny_text_router(tmp_path).featurizer

    def run(index: int, barrier: Callable[[], object]) -> object:
        del barrier
        with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
            return shared_query(featurizer, PROMPTS, cache, index, 2, pytest.fail)

    for query in in_processes(2, run):
        np.testing.assert_array_equal(query["token_ids"], featurizer.query(PROMPTS)["token_ids"])


def test_nothing_but_the_answer_grows_with_the_number_of_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cache", "featurizer", "tokens"):
        monkeypatch.setattr(f"routerjax.features.{module}.PROMPTS_PER_PART", 256)
    router, reader = tiny_router(tmp_path), tiny_text_router(tmp_path)
    prompts = [f"{row}" for row in range(3 * 2048)]

    def bytes_per_prompt(use: Callable[[list[str]], object]) -> float:
        peaks = []
        use(prompts[:2048])  # programs are compiled once
        for count in (2048, len(prompts)):
            tracemalloc.start()
            use(prompts[:count])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return (peaks[1] - peaks[0]) / (len(prompts) - 2048)

    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        assert bytes_per_prompt(lambda part: router.featurizer.query(part)) < 4 * WIDTH + 128
        assert bytes_per_prompt(lambda part: router.win_prob(part, cache=cache)) < 128
        assert bytes_per_prompt(reader.win_prob) < 128
    # Tokens are held, 4 bytes each.
    assert bytes_per_prompt(lambda part: features.read_prompts(reader.featurizer.tokenizer, part)) < 4 * 8 + 128
