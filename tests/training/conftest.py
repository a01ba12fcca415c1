"""A very small data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.data.scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training scenes of 64 x 80 pixels, four for validation and four for test."""
    return write_scenes(
        tmp_path_factory.mktemp("data") / "scenes", train=8, val=4, test=4, size=(64, 80)
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the scan cache out of the user's home."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than these runs; fixtures of whole modules draw them."""
    monkeypatch.setattr("zoo.training.finetune.write_curves", lambda _: None)
