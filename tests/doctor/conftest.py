"""Clean data sets, copies to put faults into, and what the doctor reports without a fault.

`clean` holds generated scenes; `many` is `clean` and again frames of real videos.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.doctor_folders import Found, content, found_in, linked, write_binary, write_street

from zoo.data.scenes import write_scenes


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pairs of 64x80 in eight classes; the tests only read it."""
    folder = tmp_path_factory.mktemp("doctor") / "scenes"
    return write_scenes(folder, train=40, val=12, test=8, size=(64, 80))


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """A copy of `clean` to put a fault into."""
    return Path(shutil.copytree(clean, tmp_path / "scenes"))


@pytest.fixture
def binary(clean: Path, tmp_path: Path) -> Path:
    """The pictures of `clean` with two classes: 0 the rest, 1 the ground."""
    return write_binary(clean, tmp_path / "ground")


@pytest.fixture(
    scope="session",
    params=["scenes", pytest.param("street", marks=[pytest.mark.real_data, pytest.mark.long])],
)
def many(
    request: pytest.FixtureRequest, clean: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """60 pairs of 64x80, generated scenes or frames of CamVid; the tests only read them."""
    folder = clean
    if request.param == "street":
        folder = tmp_path_factory.mktemp("doctor_many") / "street"
        write_street(request.getfixturevalue("shared_data") / "camvid", folder)
    before = content(folder)
    yield folder
    assert content(folder) == before, "a test wrote into the clean set"


@pytest.fixture(scope="session")
def many_found(many: Path) -> Found:
    return found_in(many)


@pytest.fixture
def among_many(many: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `many` by hard links, to put a fault into."""
    yield from linked(many, tmp_path / "many")


@pytest.fixture(scope="session")
def many_binary(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pictures of `many` with two classes: 0 the rest, 1 the ground."""
    folder = write_binary(many, tmp_path_factory.mktemp("doctor_binary") / "ground")
    before = content(folder)
    yield folder
    assert content(folder) == before, "a test wrote into the clean set"


@pytest.fixture(scope="session")
def many_binary_found(many_binary: Path) -> Found:
    return found_in(many_binary)


@pytest.fixture
def among_many_binary(many_binary: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `many_binary` by hard links, to put a fault into."""
    yield from linked(many_binary, tmp_path / "many")
