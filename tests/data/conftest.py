"""Every test here has its own, empty cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("zoo_cache")
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    return folder
