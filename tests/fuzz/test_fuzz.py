"""Each property on a few inputs, the same in every run; ``make fuzz`` draws others for as long as one likes."""

import pytest

from tests.fuzz.place import Place, make_place
from tests.fuzz.properties import PROPERTIES
from tests.fuzz.search import search

pytestmark = pytest.mark.xdist_group("fuzz")  # one process makes the good inputs
EXAMPLES = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(place: Place, name: str) -> None:
    search(PROPERTIES[name], place, examples=EXAMPLES)
