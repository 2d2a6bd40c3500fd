"""Embeddings from a server that answers well, late, wrongly, or not at all."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from routerjax import InputError, features
from routerjax.features import endpoint_connection
from routerjax.features.endpoint import PROMPTS_PER_REQUEST
from routerjax.prompts import prompt_sha256
from tests.endpoint import KEY, EndpointServer, embeddings_of

PROMPTS = ["Hello there", "naïve 你好", "Prove it", "Hello there", " padded "]
MANY = [f"question number {number}" for number in range(2 * PROMPTS_PER_REQUEST + 88)]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[features.EmbeddingCache]:
    with features.EmbeddingCache(tmp_path / "cache.sqlite") as opened:
        yield opened


def encoder_of(server: EndpointServer, source: str = "openai:tiny", **arguments: object) -> features.EndpointEncoder:
    return features.EndpointEncoder(source, **{"base_url": server.base_url, "api_key": KEY, **arguments})


@pytest.mark.parametrize("knows_base64", [True, False])
def test_embeddings_in_order_and_each_prompt_sent_once(server: EndpointServer, knows_base64: bool) -> None:
    server.knows_base64 = knows_base64
    encoder = encoder_of(server)
    embedding = encoder.encode(PROMPTS)
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, embeddings_of(PROMPTS))
    assert [request["input"] for request in server.requests] == [["Hello there", "naïve 你好", "Prove it", " padded "]]
    assert "dimensions" not in server.requests[0]
    fingerprint = f"openai:tiny at {server.base_url}"
    assert encoder.featurizer.to_dict() == {
        "kind": "endpoint",
        "source": "openai:tiny",
        "fingerprint": fingerprint,
        "known_width": 6,
    }
    assert encoder.encode([]).shape == (0, 6)
    assert encoder.encode(["half an emoji \ud83d"]).shape == (1, 6)
    assert server.requests[-1]["input"] == ["half an emoji \ufffd"]
    assert len(server.requests) == 2


def test_many_prompts_go_in_few_requests(server: EndpointServer) -> None:
    np.testing.assert_array_equal(encoder_of(server).encode(MANY), embeddings_of(MANY))
    assert server.sizes == [256, 256, 88]


def test_the_width_is_asked_for_only_where_nothing_told_it(server: EndpointServer) -> None:
    assert encoder_of(server, "openai:tiny?dimensions=4").width == 4
    assert encoder_of(server, width=9).width == 9
    assert server.requests == []
    assert encoder_of(server).width == 6
    assert encoder_of(server).encode([]).shape == (0, 6)
    assert server.sizes == [1, 1]
    server.max_characters = 0
    with pytest.raises(InputError, match="refuses this prompt of 5 characters"):
        _ = encoder_of(server).featurizer.width


def test_dimensions_are_sent_and_part_of_the_fingerprint(server: EndpointServer) -> None:
    short = encoder_of(server, "openai:tiny?dimensions=4")
    np.testing.assert_array_equal(short.encode(PROMPTS), embeddings_of(PROMPTS, 4))
    assert server.requests[0]["dimensions"] == 4
    others = [encoder_of(server), encoder_of(server, base_url="http://elsewhere/v1"), encoder_of(server, "openai:big")]
    assert len({encoder.fingerprint for encoder in [short, *others]}) == 4
    assert encoder_of(server, base_url=server.base_url + "/").fingerprint == others[0].fingerprint


def test_retry_after_is_honoured(server: EndpointServer) -> None:
    server.script = ["busy"]
    np.testing.assert_array_equal(encoder_of(server).encode(PROMPTS), embeddings_of(PROMPTS))
    first, second = server.arrived
    assert 1.0 <= second - first < 5


@pytest.mark.parametrize("trouble", ["broken", "slowly", "truncated"])
def test_what_did_not_arrive_is_asked_for_again(server: EndpointServer, trouble: str) -> None:
    server.script = [trouble]
    embedding = encoder_of(server, timeout=0.3, max_retries=1).encode(PROMPTS)
    np.testing.assert_array_equal(embedding, embeddings_of(PROMPTS))
    assert server.sizes == [4, 4]


WRONG = {
    "half": "ValueError: 2 embeddings, 2 of different index, for 4 prompts",
    "twice_the_first": "ValueError: 4 embeddings, 3 of different index, for 4 prompts",
    "one_more": "ValueError: 5 embeddings, 5 of different index",
    "one_twice": "ValueError: 5 embeddings, 4 of different index",
    "not_json": "JSONDecodeError",
    "a_page": "JSONDecodeError",
    "a_list": "ValueError: no JSON object",
    "not_finite": "not finite",
    "beyond_float32": "not finite",
    "ragged": "ValueError: all input arrays must have the same shape",
    "damaged_base64": "Error: ",
    "no_numbers": "ValueError: embeddings of shape",
    "of_many_digits": "not finite",
    "integer": "OverflowError",
    "deep": "RecursionError: ",
}


@pytest.mark.parametrize("trouble", WRONG)
def test_a_wrong_answer_is_never_taken(
    server: EndpointServer, cache: features.EmbeddingCache, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_connection, "FIRST_WAIT_SECONDS", 0.01)
    server.script = [trouble, trouble]
    with pytest.raises(OSError, match=rf"does not answer with one embedding .*{WRONG[trouble]}.*after 1 retries"):
        encoder_of(server, max_retries=1).encode(PROMPTS, cache=cache)
    assert cache.get(f"openai:tiny at {server.base_url}", [prompt_sha256(prompt) for prompt in PROMPTS]) == {}
    server.script = [trouble]
    np.testing.assert_array_equal(encoder_of(server).encode(PROMPTS, cache=cache), embeddings_of(PROMPTS))
    assert server.sizes == [4] * 4


def test_the_wait_after_a_wrong_answer_doubles(server: EndpointServer) -> None:
    server.script = ["half", "half"]
    encoder_of(server).encode(PROMPTS)
    first, second, third = server.arrived
    assert 0.5 <= second - first < third - second


def test_shuffled_answers_are_put_in_order_by_index(server: EndpointServer) -> None:
    server.script = ["shuffled"]
    np.testing.assert_array_equal(encoder_of(server).encode(PROMPTS), embeddings_of(PROMPTS))
    assert len(server.requests) == 1


def test_another_width_is_an_error_and_not_cached(server: EndpointServer, cache: features.EmbeddingCache) -> None:
    encoder = encoder_of(server)
    encoder.encode(PROMPTS[:1], cache=cache)
    server.script = ["wide"]
    with pytest.raises(InputError, match=r"must be 6 wide, got 7: another model is behind that name"):
        encoder.encode(PROMPTS, cache=cache)
    with pytest.raises(InputError, match="must be 3 wide, got 6"):
        encoder_of(server, width=3).encode(PROMPTS)
    server.width = 7  # another process finds the cache of before
    with pytest.raises(InputError, match=r"are 6 and 7 wide: another model .*; set ROUTERJAX_CACHE"):
        encoder_of(server).encode(PROMPTS, cache=cache)
    cached = cache.get(encoder.fingerprint, [prompt_sha256(prompt) for prompt in PROMPTS])
    assert [embedding.shape for embedding in cached.values()] == [(6,)]
    with pytest.raises(InputError, match="must be 3 wide, got 6"):
        encoder_of(server, width=3).encode(PROMPTS[:1], cache=cache)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"api_key": "wrong"}, InputError, r"does not accept the key: .*Incorrect API key.*; set OPENAI_API_KEY"),
        ({"source": "openai:tinny"}, InputError, r"has no embeddings of a model 'tinny': .*check the name"),
        ({"base_url": "http://127.0.0.1:9/v1", "max_retries": 0}, OSError, r"http://127.0.0.1:9/v1 does not answer"),
    ],
)
def test_what_cannot_work_is_one_clear_error(
    server: EndpointServer, arguments: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        encoder_of(server, **arguments).encode(PROMPTS)
    assert len(server.requests) <= 1


def test_what_was_answered_before_a_failure_stays_in_the_cache(
    server: EndpointServer, cache: features.EmbeddingCache
) -> None:
    server.script = ["well", *["broken"] * 1000]
    message = (
        r"failed: 500 The server had an error, after 2 retries; .* without an answer is row 256 of \d+, of 19 char"
    )
    with pytest.raises(OSError, match=message):
        encoder_of(server, max_retries=2).encode(MANY, cache=cache)
    # Halved down to one prompt, which is given all retries, and so is the one behind it.
    assert server.sizes == [256, 256, 256, 128, 128, 64, 64, 32, 32, 16, 16, 8, 8, 4, 4, 2, 2, *[1] * 6]
    server.script.clear()
    server.requests.clear()
    np.testing.assert_array_equal(encoder_of(server).encode(MANY, cache=cache), embeddings_of(MANY))
    assert server.sizes == [256, 88]
    assert {prompt for request in server.requests for prompt in request["input"]} == set(MANY[256:])
    again = encoder_of(server, api_key="not looked at").encode(MANY, cache=cache)
    np.testing.assert_array_equal(again, embeddings_of(MANY))
    assert len(server.requests) == 2


CLIENT = """
import sys
from routerjax import features
from tests.features.test_endpoint import MANY
with features.EmbeddingCache(sys.argv[1]) as cache:
    features.EndpointEncoder("openai:tiny").encode(MANY, cache=cache)
"""


def test_a_killed_run_asks_only_for_the_rest(server: EndpointServer, tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    environment = {**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY}

    def kill(body: dict) -> tuple[int, dict[str, str], bytes]:
        client.send_signal(signal.SIGKILL)
        return server.reply_well(body)

    server.script = ["well", kill]
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(path)], env=environment, cwd=Path(__file__).parents[2])
    assert client.wait(timeout=120) == -signal.SIGKILL
    assert server.sizes == [256, 256]
    with features.EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(encoder_of(server).encode(MANY, cache=cache), embeddings_of(MANY))
    assert server.sizes == [256, 256, 256, 88]


def test_a_server_that_takes_few_prompts_is_given_few(server: EndpointServer) -> None:
    server.max_prompts = 100
    np.testing.assert_array_equal(encoder_of(server).encode(MANY), embeddings_of(MANY))
    assert server.sizes == [*[256, 128, 64, 64, 128, 64, 64] * 2, 88]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("max_characters", r"refuses this prompt of 500 characters \(400 .*maximum context.*\); and so with 1 others;"),
        (
            "fails_beyond",
            r"fails on this prompt of 500 characters \(failed: 500 input is too large.*\); and so with 1 ",
        ),
    ],
)
def test_a_prompt_that_is_too_long_is_named_and_all_others_are_kept(
    server: EndpointServer, cache: features.EmbeddingCache, limit: str, message: str
) -> None:
    setattr(server, limit, 100)
    prompts = [*MANY[:300], "long " * 100, *MANY[300:400], "also long " * 100, *MANY[400:]]
    with pytest.raises(InputError, match=rf"row 300: openai:tiny at .* {message}.*shorten or drop"):
        encoder_of(server, max_retries=2).encode(prompts, cache=cache)
    cached = cache.get(f"openai:tiny at {server.base_url}", [prompt_sha256(prompt) for prompt in prompts])
    assert set(cached) == {prompt_sha256(prompt) for prompt in MANY}
    assert len(server.requests) < 60
    only = r"fails on|refuses|failed: 500 .* is row 0 of \d+, of 500 characters"
    with pytest.raises((InputError, OSError), match=only):
        encoder_of(server, max_retries=2).encode(prompts[300:301])


def test_a_server_that_recovers_loses_nothing(server: EndpointServer) -> None:
    server.script = ["broken"] * 20  # the first prompt by itself fails, and at its fifth retry does not
    np.testing.assert_array_equal(encoder_of(server).encode(MANY), embeddings_of(MANY))


def test_blank_prompts_and_what_is_no_text_are_refused_before_anything_is_sent(server: EndpointServer) -> None:
    with pytest.raises(InputError, match="row 1: an endpoint cannot embed a blank prompt"):
        encoder_of(server).encode(["x", " \n"])
    with pytest.raises(InputError, match="row 1: a prompt must be text, got None"):
        encoder_of(server).encode(["x", None])
    assert server.requests == []


def test_tokens_and_cost_are_logged(
    server: EndpointServer, cache: features.EmbeddingCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "routerjax")
    encoder = encoder_of(server, dollars_per_million_tokens=1000.0)
    encoder.encode(MANY, cache=cache)
    assert encoder.tokens_used == 3 * len(MANY) == 1800
    assert caplog.messages == [f"openai:tiny at {server.base_url}: 1800 tokens used, $1.8000"]
    encoder.encode(MANY, cache=cache)
    assert len(caplog.messages) == 1
    encoder_of(server).encode(["four words are here"])
    assert caplog.messages[1].endswith(": 4 tokens used")
    server.script = ["well", *["broken"] * 1000]  # what was paid is told even where the run fails
    with pytest.raises(OSError, match="failed"):
        encoder_of(server, max_retries=0).encode(MANY)
    assert caplog.messages[-1].endswith(": 768 tokens used")
    caplog.clear()
    for trouble in ("without_usage", "of_absurd_usage"):
        server.script = [trouble]
        np.testing.assert_array_equal(encoder.encode([trouble]), embeddings_of([trouble]))
    assert caplog.messages == []


def test_the_key_is_asked_for_only_at_use(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    encoder = encoder_of(server, api_key=None)
    with pytest.raises(InputError, match=r"openai:tiny at http.* need a key: set OPENAI_API_KEY"):
        encoder.encode(PROMPTS)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert encoder.encode(PROMPTS).shape == (5, 6)


@pytest.mark.parametrize("source", ["openai:", "tiny", "openai:a b", "openai:tiny?dimensions=0", "openai:tiny?width=4"])
def test_another_form_of_source_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=r"is written openai:MODEL or openai:MODEL\?dimensions=N, got"):
        features.EndpointEncoder(source)
