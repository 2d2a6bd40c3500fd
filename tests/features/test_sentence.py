"""Text to embeddings: the real tokenizer, few compilations, the cache, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from routerjax import InputError, features
from routerjax.features import sentence, tokenizer
from routerjax.prompts import prompt_sha256
from tests.encoders import TEXTS, WIDTH, save_tiny_encoder

PROMPTS = [*TEXTS, "", "   ", "primes " * 100, "half an emoji \ud83d", "naïve 你好", TEXTS[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


def test_each_prompt_alone_or_among_others_is_the_same(folder: Path) -> None:
    encoder = features.load_encoder(folder, max_length=40)
    apply, together = jax.jit(encoder.encoder.module.apply), encoder.encode(PROMPTS)
    assert together.shape == (len(PROMPTS), WIDTH)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for row, prompt in enumerate(PROMPTS):
        query = encoder.tokenize([prompt])
        assert query["token_ids"].shape[1] == query["attention_mask"].sum() <= 40
        np.testing.assert_allclose(together[row], apply(encoder.encoder.variables, query)[0], atol=1e-5)
    assert encoder.encode([]).shape == (0, WIDTH)


def test_the_files_own_padding_and_truncation_are_overridden(folder: Path) -> None:
    encoder = features.load_encoder(folder, max_length=40)
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    long = "primes " * 30
    assert encoder.tokenize([long])["token_ids"][0].tolist() == plain.encode(long).ids
    assert encoder.tokenize([PROMPTS[5]])["token_ids"].shape == (1, 40)


def most_compilations(reads: features.TextTokenizer) -> int:
    """A program for each length and each power of two of rows that a batch of it may have."""
    return sum((tokenizer.TOKENS_ON_CPU // length).bit_length() for length in reads.lengths)


def test_compilations_are_bounded_whatever_is_encoded(folder: Path) -> None:
    encoder = features.load_encoder(folder, max_length=20)
    sentence._embed.clear_cache()
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 200, 6, 1):
        words = rng.integers(0, 30, count)
        encoder.encode([" ".join(["primes"] * number) + f" {row}" for row, number in enumerate(words)])
    compiled = sentence._embed._cache_size()
    assert 2 <= compiled <= most_compilations(encoder.encoder.tokenizer)
    encoder.encode(["poem " * 4, "another poem"])
    assert sentence._embed._cache_size() == compiled


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 130, 300])
def test_rows_are_padded_to_powers_of_two(folder: Path, count: int) -> None:
    reads = features.load_encoder(folder, max_length=40).encoder.tokenizer
    for length in (5, 16, 17, 32, 40):
        padded = next(known for known in reads.lengths if known >= length)
        batches = list(reads.batches([[1] * length] * count))
        assert np.concatenate([rows for rows, _ in batches]).tolist() == list(range(count))
        for place, (rows, query) in enumerate(batches):
            batch, columns = query["token_ids"].shape
            assert columns == padded
            assert batch * columns <= tokenizer.TOKENS_ON_CPU
            assert batch.bit_count() == 1
            assert len(rows) <= batch < 2 * len(rows)
            # Only the last batch is not full, and no batch could be twice as large.
            assert place == len(batches) - 1 or (len(rows) == batch and 2 * batch * columns > tokenizer.TOKENS_ON_CPU)
            np.testing.assert_array_equal(query["attention_mask"].sum(), len(rows) * length)


def test_the_fingerprint_names_weights_tokenizer_length_and_pooling(tmp_path: Path, folder: Path) -> None:
    spec = features.load_encoder(folder, max_length=32)
    assert features.load_encoder(folder, max_length=32) == spec
    others = [
        features.load_encoder(folder, max_length=33),
        features.load_encoder(save_tiny_encoder(tmp_path / "weights", seed=1), max_length=32),
        features.load_encoder(save_tiny_encoder(tmp_path / "pooling", normalize=False), max_length=32),
    ]
    assert len({spec.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert features.read_featurizer(json.loads(json.dumps(spec.to_dict())), {}) == spec
    with pytest.raises(InputError, match=r"featurizer\.source must be given: text"):
        features.read_featurizer({"kind": "sentence"}, {})


def test_layers_that_the_configuration_does_not_count_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(InputError, match=r"does not hold the expected tensors .*\+ encoder.layer.1.attention"):
        features.load_encoder(folder, max_length=32).encode(PROMPTS)


def test_the_cache_is_asked_first_and_knows_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    encoder = features.load_encoder(folder, max_length=32)
    with features.EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        first = encoder.encode(PROMPTS, cache=cache)
        digest = prompt_sha256(PROMPTS[0])
        assert list(cache.get(encoder.fingerprint, [digest])) == [digest]
        assert cache.get("another", [digest]) == {}
        marked = np.full(WIDTH, 7, np.float32)
        cache.put(encoder.fingerprint, {prompt_sha256("new"): marked})
        np.testing.assert_array_equal(encoder.encode(["new"], cache=cache), marked[None])
        np.testing.assert_array_equal(encoder.encode(PROMPTS, cache=cache), first)
    assert TEXTS[0].encode() not in (tmp_path / "cache.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "t5"}, "model_type must be one of bert, roberta, .*, got 't5'"),
        ("config.json", {"model_type": ["bert"]}, r"model_type must be one of bert, roberta, .*, got \['bert'\]"),
        ("config.json", {"model_type": "bert", "hidden_act": "relu"}, "hidden_act must be 'gelu'"),
        ("config.json", {"model_type": "bert"}, r"! embeddings.word_embeddings.weight: expected shape \(30522, 768\)"),
        ("config.json", "{", "is not JSON"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
    ],
)
def test_another_architecture_or_damage_is_refused(tmp_path: Path, file: str, content: object, message: str) -> None:
    folder = save_tiny_encoder(tmp_path / "tiny")
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        features.load_encoder(folder, max_length=32)


def test_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_length must be in \[2, 64\]"):
        features.load_encoder(folder, max_length=65)
    with pytest.raises(InputError, match=r"has no config\.json"):
        features.load_encoder(tmp_path)
    with pytest.raises(InputError, match="row 1: a prompt must be text, got None"):
        features.load_encoder(folder, max_length=32).encode(["x", None])
