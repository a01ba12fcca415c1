"""Every test here has its own, empty cache folder, and finds data_folders.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("zoo_cache")
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    return folder
