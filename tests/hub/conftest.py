"""No pauses between tries, and chunks small enough for a small file to be cut in the middle."""

from __future__ import annotations

import pytest

from zoo.hub import download


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(download, "CHUNK_BYTES", 1024)
