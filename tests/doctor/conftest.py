"""One clean data set for the session, and what the doctor says about it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doctor_folders import Found, found_in, write_binary

from zoo.data.scenes import write_scenes


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pairs of 64x80 in eight classes; the tests only read it."""
    folder = tmp_path_factory.mktemp("doctor") / "scenes"
    return write_scenes(folder, train=40, val=12, test=8, size=(64, 80))


@pytest.fixture(scope="session")
def clean_found(clean: Path) -> Found:
    return found_in(clean)


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """A copy to put a fault into."""
    return Path(shutil.copytree(clean, tmp_path / "scenes"))


@pytest.fixture(scope="session")
def clean_binary(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures with two classes: 0 the rest, 1 the ground."""
    return write_binary(clean, tmp_path_factory.mktemp("doctor_binary") / "ground")


@pytest.fixture(scope="session")
def binary_found(clean_binary: Path) -> Found:
    return found_in(clean_binary)


@pytest.fixture
def binary(clean_binary: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_binary, tmp_path / "ground"))
