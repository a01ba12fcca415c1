"""No pauses between tries, small chunks, and a clock that only the silence of the Hub moves."""

from __future__ import annotations

import importlib
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from zoo.remote import client as remote_client
from zoo.remote import upload


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_client, "RETRY_PAUSE_S", 0.0)
    without_pauses = SimpleNamespace(sleep=lambda _: None, time=time.time)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", without_pauses)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)


@pytest.fixture
def silences(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of silence after which requests were given up, on a clock that only they move.

    A silent request is really cut short, so that a test is soon over, and a busy machine is given
    all the time that it needs for the others.
    """
    found: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(found), sleep=lambda _: None)
    for module in (remote_client, upload):
        monkeypatch.setattr(module, "time", clock)
    client = type(huggingface_hub.get_session()).__module__.partition(".")[0]
    http: Any = importlib.import_module(client)
    send = http.HTTPTransport.handle_request

    def noted(transport: Any, request: Any) -> Any:
        patience = request.extensions["timeout"]
        silent = loopback_hub.will_be_silent(request.method, unquote(request.url.path))
        request.extensions["timeout"] = patience | {"read": 0.1 if silent else 120.0}
        try:
            return send(transport, request)
        except http.ReadTimeout:
            found.append(patience["read"])
            raise
        finally:
            request.extensions["timeout"] = patience  # a redirect inherits it

    monkeypatch.setattr(http.HTTPTransport, "handle_request", noted)
    return found
