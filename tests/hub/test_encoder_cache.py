"""fetch_encoder where the Hub is gone, or the cache is damaged or closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.encoder_case import REPO, WAYS, WEIGHTS, blobs, failure, fetch
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants

from zoo.common.errors import RunError

pytestmark = pytest.mark.usefixtures("silences")


@pytest.fixture
def hub(loopback_hub: LoopbackHub) -> LoopbackHub:
    loopback_hub.add_repo(REPO, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    return loopback_hub


def go_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def break_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("*", status=503)


def drop_connections(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("*", drop=True)


def silence_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault("*", silent=True)


Outage = Callable[[LoopbackHub, pytest.MonkeyPatch], None]


@pytest.mark.parametrize("outage", [go_offline, break_hub, drop_connections, silence_hub])
def test_without_the_hub_the_cached_file_is_used_with_a_remark(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outage: Outage,
) -> None:
    first = fetch()
    capsys.readouterr()
    outage(hub, monkeypatch)
    assert fetch() == first
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Using revision {first.revision[:12]} from the cache." in err
    assert "Try:" not in err


def test_offline_without_a_cache_makes_no_request(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_offline(hub, monkeypatch)
    message = failure(RunError)
    assert "HF_HUB_OFFLINE is set" in message
    assert "unset HF_HUB_OFFLINE" in message
    assert all(way in message for way in WAYS)
    assert hub.lines == []


def test_a_damaged_cache_is_repaired(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fetch()
    first.path.resolve().write_bytes(b"damaged")
    assert fetch().path.read_bytes() == WEIGHTS
    first.path.resolve().write_bytes(b"damaged")
    assert fetch(revision=first.revision).path.read_bytes() == WEIGHTS
    assert "is damaged; deleted:" in capsys.readouterr().err
    first.path.resolve().write_bytes(b"damaged")
    go_offline(hub, monkeypatch)
    assert "HF_HUB_OFFLINE is set" in failure(RunError)
    assert blobs() == []


def test_a_cache_that_cannot_be_written(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    message = failure(RunError)
    assert f"the cache {tmp_path / 'file'} cannot be used" in message
    assert "point HF_HOME at another folder" in message
