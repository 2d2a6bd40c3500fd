"""A format that this file defines is read, written, compared and offered by the command line, as the package's are."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, Router, formats, load_router, save_router
from routerjax.cli import main
from routerjax.features import Embeddings
from tests.routers import tiny_router

PROMPTS = ["prove it", "a poem"]


class Zipped(formats.ReadableFormat, formats.WritableFormat):
    """A router folder as one file."""

    name = "zipped"

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        folder = Path(source).with_suffix(".unpacked")
        shutil.unpack_archive(source, folder)
        return load_router(folder).with_pair(strong, weak)

    def unmet(self, router: Router) -> Iterator[str]:
        if router.threshold is None:
            yield "a zipped router needs a threshold: calibrate it"

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        save_router(router, folder / "folder")
        shutil.make_archive(str(folder / "router"), "zip", folder / "folder")
        shutil.rmtree(folder / "folder")

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        written = self.read(folder / "router.zip").win_prob(query)
        difference = float(np.abs(written - router.win_prob(query)).max())
        if difference > 0.0:
            raise formats.VerificationError(f"it is off by {difference:.1e}")
        return {"router.zip": difference}

    def usage(self, router: Router, path: Path) -> str:
        return f"mail {path / 'router.zip'} to a friend"


class Unequal(Zipped):
    """A format that changes every parameter a little."""

    name = "unequal"

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        changed = jax.tree.map(lambda leaf: 1.01 * leaf, router.variables)
        super().write(dataclasses.replace(router, variables=changed), folder, query)


@pytest.fixture
def entry_points(install: Callable[..., None]) -> None:
    lines = [f"{entry.name} = {__name__}:{entry.__name__}" for entry in (Zipped, Unequal)]
    install("\n".join(["[routerjax.formats]", *lines]))


@pytest.mark.usefixtures("entry_points")
def test_a_format_of_another_package_is_one_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = tiny_router(tmp_path, threshold=0.5)
    save_router(router, tmp_path / "router")
    command = ["--format", "zipped", "--output"]
    assert main(["export", str(tmp_path / "router"), *command, str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "router.zip: win probabilities differ from the router's by at most 0.0e+00"
    assert printed[1] == f"verified and written to {tmp_path}/out; mail {tmp_path}/out/router.zip to a friend"
    assert main(["import", str(tmp_path / "out" / "router.zip"), *command, str(tmp_path / "again")]) == 0
    again = load_router(tmp_path / "again")
    np.testing.assert_array_equal(again.win_prob(PROMPTS), router.win_prob(PROMPTS))
    assert again.provenance["format"] == "zipped"
    assert again.provenance["imported_from"] == str(tmp_path / "out" / "router.zip")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "zipped" in capsys.readouterr().out


@pytest.mark.usefixtures("entry_points")
def test_what_is_the_same_for_all_formats_is_not_theirs(tmp_path: Path) -> None:
    router = tiny_router(tmp_path, threshold=0.5)
    with pytest.raises(InputError, match="needs a threshold"):
        formats.export(tiny_router(tmp_path), tmp_path / "out", "zipped")
    with pytest.raises(InputError, match="exists already"):
        formats.export(router, tmp_path / "encoder", "zipped")
    for kept in ("out.rejected", "out.rejected.2"):
        with pytest.raises(formats.VerificationError, match=rf"it is off by .*; it is kept as .*/{kept}$"):
            formats.export(router, tmp_path / "out", "unequal")
        assert (tmp_path / kept / "router.zip").is_file()
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_not_there_or_goes_the_other_way_is_refused(tmp_path: Path) -> None:
    router = tiny_router(tmp_path)
    with pytest.raises(InputError, match=r"the format must be one of stablehlo, onnx, .*did you mean 'stablehlo'\?"):
        formats.export(router, tmp_path / "out", "stablehl")
    with pytest.raises(
        InputError,
        match="cannot be written in the format 'routellm-sw', but in stablehlo, onnx, triton, vector, hf, route",
    ):
        formats.export(router, tmp_path / "out", "routellm-sw")
    with pytest.raises(InputError, match="cannot be read in the format 'stablehlo', but in hf, routellm"):
        formats.read(tmp_path, "stablehlo")


def test_names_are_taken_once_and_a_format_says_how_it_is_verified() -> None:
    class Bundle(formats.Format):
        """The package's by name alone."""

        name = "stablehlo"

    with pytest.raises(InputError, match=r"routerjax.formats: the name 'stablehlo' is taken by"):
        formats.register_format(Bundle)

    class Hopeful(formats.WritableFormat):
        """A format that nobody compares."""

        def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None: ...

        def usage(self, router: Router, path: Path) -> str:
            return ""

    with pytest.raises(TypeError, match="verify"):
        Hopeful()
