"""No pauses between tries, and chunks small enough for a small file to be cut in the middle."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import _http

from zoo.remote import download, listing, upload


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(listing, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(upload, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    monkeypatch.setattr(download, "CHUNK_BYTES", 1024)
