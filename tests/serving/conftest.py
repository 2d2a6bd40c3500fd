"""Running server of a small router, and its upstreams, for the tests of this folder."""

from collections.abc import Iterator

import pytest

from routerjax import Router
from routerjax.features import load_encoder
from tests.encoders import save_tiny_encoder
from tests.routers import tiny_router
from tests.serving.servers import KEYS, Running, serving, settings
from tests.serving.upstream import Upstream, running_upstream


@pytest.fixture(scope="session")
def small_router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    folder = tmp_path_factory.mktemp("serving")
    save_tiny_encoder(folder / "encoder")
    # Two lengths of texts, each of which every server compiles.
    return tiny_router(folder, threshold=0.5, featurizer=load_encoder(folder / "encoder", max_length=32))


@pytest.fixture(autouse=True, scope="session")
def _keys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def _upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    with running_upstream() as big, running_upstream() as small:
        yield big, small


@pytest.fixture(scope="session")
def _server(
    small_router: Router, _upstreams: tuple[Upstream, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with serving(small_router, tmp_path_factory.mktemp("server"), settings(*_upstreams)) as started:
        yield started


@pytest.fixture
def big(_upstreams: tuple[Upstream, Upstream]) -> Upstream:
    return _fresh(_upstreams[0])


@pytest.fixture
def small(_upstreams: tuple[Upstream, Upstream]) -> Upstream:
    return _fresh(_upstreams[1])


@pytest.fixture
def server(_server: Running, big: Upstream, small: Upstream) -> Running:
    return _server


def _fresh(upstream: Upstream) -> Upstream:
    upstream.answers.clear()
    upstream.bodies.clear()
    upstream.headers.clear()
    upstream.open = upstream.closed = 0
    return upstream
