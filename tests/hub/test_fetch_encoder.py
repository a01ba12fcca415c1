"""fetch_encoder over real HTTP: what it asks for, what it keeps, and how it fails."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from helpers.encoder_case import (
    CDN,
    DIGEST,
    INFO,
    REPO,
    SILENCE_S,
    WAYS,
    WEIGHTS,
    blobs,
    failure,
    fetch,
)
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants
from safetensors.numpy import save

from zoo.common.errors import InputError, RunError, ZooError
from zoo.hub.encoders import fetch_encoder, hub_answers

pytestmark = pytest.mark.usefixtures("silences")


@pytest.fixture
def hub(loopback_hub: LoopbackHub) -> LoopbackHub:
    loopback_hub.add_repo(REPO, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    return loopback_hub


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    return endpoint


def test_three_requests_bring_the_file_and_the_cdn_sees_no_token(hub: LoopbackHub) -> None:
    commit = hub.repos[REPO].refs["main"]
    file = fetch()
    assert file.path.read_bytes() == WEIGHTS
    assert (file.repo, file.revision, file.sha256) == (REPO, commit, DIGEST)
    resolve = f"/{REPO}/resolve/{commit}/model.safetensors"
    assert hub.lines == [f"GET {INFO}", f"HEAD {resolve}", f"GET {CDN}"]
    assert [request.token for request in hub.requests] == ["fake", "fake", None]
    assert "authorization" not in hub.requests[2].headers
    assert hub.requests[2].headers["host"] == f"localhost:{hub.port}"
    assert hub.requests[0].query == {"blobs": ["true"]}


def test_cached_file_costs_one_request_and_a_pinned_one_none(hub: LoopbackHub) -> None:
    first = fetch()
    hub.requests.clear()
    assert fetch() == first
    assert hub.lines == [f"GET {INFO}"]
    hub.requests.clear()
    assert fetch(revision=first.revision) == first
    assert hub.lines == []


def test_pinned_revision_is_fetched_after_main_has_moved(hub: LoopbackHub) -> None:
    old = hub.repos[REPO].refs["main"]
    new = hub.commit(REPO, {"model.safetensors": save({"w": np.zeros(3)})})
    assert fetch(revision=old).path.read_bytes() == WEIGHTS
    assert hub.lines[0] == f"GET {INFO}/revision/{old}"
    latest = fetch()
    assert (latest.revision, latest.path.read_bytes() == WEIGHTS) == (new, False)


def test_a_commit_with_the_same_file_downloads_nothing(hub: LoopbackHub) -> None:
    fetch()
    commit = hub.commit(REPO, {"README.md": b"# New words"})
    hub.requests.clear()
    file = fetch()
    assert (file.revision, file.path.read_bytes()) == (commit, WEIGHTS)
    assert hub.lines == [f"GET {INFO}", f"HEAD /{REPO}/resolve/{commit}/model.safetensors"]


def test_the_client_of_the_hub_finds_the_file_in_its_cache(hub: LoopbackHub) -> None:
    file = fetch()
    found = huggingface_hub.hf_hub_download(REPO, "model.safetensors", local_files_only=True)
    assert Path(found).samefile(file.path)
    hub.requests.clear()
    assert huggingface_hub.hf_hub_download(REPO, "model.safetensors") == found
    assert [request.method for request in hub.requests] == ["HEAD"]


def test_a_file_that_the_client_cached_is_not_fetched_again(hub: LoopbackHub) -> None:
    path = huggingface_hub.hf_hub_download(REPO, "model.safetensors")
    hub.requests.clear()
    assert fetch().path.samefile(path)
    assert hub.lines == [f"GET {INFO}"]


def test_without_symbolic_links_the_file_itself_lies_in_the_snapshot(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    first = fetch()
    assert not first.path.is_symlink()
    assert first.path.read_bytes() == WEIGHTS
    hub.requests.clear()
    assert fetch() == first
    assert hub.lines == [f"GET {INFO}"]


def test_wrong_bytes_are_refused_and_not_kept(hub: LoopbackHub) -> None:
    hub.fault("/cdn/*", wrong=True, times=1)
    message = failure(RunError)
    assert f"({len(WEIGHTS)} bytes, {DIGEST[:12]}...)" in message
    assert "it was deleted" in message
    assert blobs() == []
    assert fetch().path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("body", [WEIGHTS[:-1], WEIGHTS + b"x" * 5000], ids=["short", "long"])
def test_wrong_length_is_refused(hub: LoopbackHub, body: bytes) -> None:
    hub.fault("/cdn/*", body=body)
    assert "sent a file of another size than it lists" in failure(RunError)
    assert blobs() == []


def test_a_cut_download_is_resumed_where_it_broke(hub: LoopbackHub) -> None:
    hub.fault("/cdn/*", cut=10_240, times=2)
    assert fetch().path.read_bytes() == WEIGHTS
    ranges = [request.headers.get("range") for request in hub.requests if request.path == CDN]
    assert ranges == [None, "bytes=10240-", "bytes=20480-"]


def test_a_server_that_ignores_the_range_starts_over(hub: LoopbackHub) -> None:
    hub.fault("/cdn/*", body=WEIGHTS)
    hub.fault("/cdn/*", cut=10_240, times=1)
    assert fetch().path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("fault", [{"cut": 0}, {"drop": True}, {"status": 503}])
def test_a_download_that_brings_nothing_is_tried_twice(
    hub: LoopbackHub, fault: dict[str, Any]
) -> None:
    hub.fault("/cdn/*", **fault)
    message = failure(RunError)
    assert all(way in message for way in WAYS)
    assert [request.path for request in hub.requests].count(CDN) == 2


@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"status": 503}])
def test_one_failure_of_the_first_request_is_forgiven(
    hub: LoopbackHub, fault: dict[str, Any]
) -> None:
    hub.fault("/api/*", times=1, **fault)
    assert fetch().path.read_bytes() == WEIGHTS
    assert hub.lines[:2] == [f"GET {INFO}"] * 2


@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"status": 503}])
def test_one_failure_of_the_download_is_forgiven(hub: LoopbackHub, fault: dict[str, Any]) -> None:
    hub.fault("/cdn/*", times=1, **fault)
    assert fetch().path.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, InputError, ("access was refused (status 401)", "`hf auth login`", "unset HF_TOKEN")),
        (403, InputError, ("access was refused (status 403)", "HF_TOKEN")),
        (404, RunError, ("answered with status 404",)),
        (429, RunError, ("limits the rate", "wait 7 seconds", "that raises the limit")),
        (500, RunError, ("answered with status 500", "later")),
        (503, RunError, ("answered with status 503", "later")),
    ],
)
def test_error_status_of_the_first_request(
    hub: LoopbackHub, status: int, kind: type[ZooError], words: tuple[str, ...]
) -> None:
    hub.fault("/api/*", status=status, headers={"Retry-After": "7"})
    message = failure(kind)
    assert message.startswith(f"Cannot fetch the weights of encoder resnet18.a1_in1k from {REPO}: ")
    assert all(word in message for word in (*words, *WAYS))
    assert len(hub.requests) == (2 if status >= 500 else 1)


def test_rate_limit_without_a_time(hub: LoopbackHub) -> None:
    hub.fault("/api/*", status=429)
    assert "wait a few minutes" in failure(RunError)


def test_missing_repository(loopback_hub: LoopbackHub) -> None:
    message = failure(InputError)
    assert "shows no such repository (status 404)" in message
    assert "check the name" in message


def test_private_repository_and_its_reader(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"model.safetensors": WEIGHTS}, private=True)
    assert "if the repository is private, log in" in failure(InputError)
    loopback_hub.add_repo(REPO, {"model.safetensors": WEIGHTS}, private=True, readers=("fake",))
    assert fetch().path.read_bytes() == WEIGHTS


def test_gated_repository(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"model.safetensors": WEIGHTS}, gated=True)
    message = failure(InputError)
    assert "the repository is gated" in message
    assert f"accept its conditions on the page of {REPO}" in message
    assert [request.path for request in loopback_hub.requests].count(CDN) == 0


def test_unknown_revision(hub: LoopbackHub) -> None:
    assert "it has no revision 'v9'" in failure(InputError, revision="v9")


@pytest.mark.parametrize("token", ["hf_secret_of_a_person", None])
@pytest.mark.parametrize(
    "fault", [{"drop": True}, {"silent": True}, {"status": 401}, {"status": 500}, {"body": b"{}"}]
)
def test_no_message_holds_the_token(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: dict[str, Any],
    token: str | None,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    hub.fault("/api/*", **fault)
    message = failure(ZooError, timeout=0.1)
    assert {request.token for request in hub.requests} == {token}
    assert "secret" not in message + "".join(capfd.readouterr())


@pytest.mark.parametrize("token", ["hf_secret\x01", "hf_secret\u2019"])
def test_a_token_that_no_header_can_carry(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    message = failure(InputError)
    assert "HF_TOKEN" in message
    assert "secret" not in message
    assert hub.lines == []


@pytest.mark.parametrize("pattern", ["/api/*", f"/{REPO}/resolve/*", "/cdn/*"])
def test_a_silent_server_is_given_up_in_time(
    hub: LoopbackHub, silences: list[float], pattern: str
) -> None:
    hub.fault(pattern, silent=True)
    message = failure(RunError)
    assert silences == [SILENCE_S]
    assert f"the Hub at 127.0.0.1:{hub.port} did not answer" in message
    assert all(way in message for way in WAYS)


def test_a_download_that_stalls_is_resumed_once_and_given_up(hub: LoopbackHub) -> None:
    hub.fault("/cdn/*", silent=True)
    hub.fault("/cdn/*", silent=True, cut=10_240, times=1)
    assert f"did not answer within {SILENCE_S} seconds" in failure(RunError)
    assert [request.path for request in hub.requests].count(CDN) == 2


def test_a_dropped_connection(hub: LoopbackHub) -> None:
    hub.fault("/api/*", drop=True)
    assert "did not answer (RemoteProtocolError)" in failure(RunError)
    assert len(hub.requests) == 2


def test_a_refused_connection(loopback_hub: LoopbackHub, closed: str) -> None:
    message = failure(RunError)
    host = closed.removeprefix("http://")
    assert re.search(rf"the Hub at {host} did not answer \(ConnectError: .*refused", message)
    assert all(way in message for way in WAYS)


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"[]", b'"text"', b"null"])
def test_a_portal_that_is_no_hub(hub: LoopbackHub, body: bytes) -> None:
    hub.fault("/api/*", body=body)
    assert "is not a Hub" in failure(RunError)


@pytest.mark.parametrize("size", ["-1", '"3"', "null", "1.5"])
def test_a_hub_that_lists_a_size_that_is_none(hub: LoopbackHub, size: str) -> None:
    file = f'{{"rfilename": "model.safetensors", "size": {size}, "blobId": "{"b" * 40}"}}'
    body = f'{{"id": "{REPO}", "sha": "{"a" * 40}", "siblings": [{file}]}}'
    hub.fault("/api/*", body=body.encode())
    assert "lists no commit, size or SHA-256" in failure(RunError)
    assert len(hub.requests) == 1


def test_a_config_too_large_to_be_one(hub: LoopbackHub) -> None:
    hub.commit(REPO, {"config.json": b" " * 10_000_001})
    message = failure(InputError, with_config=True)
    assert f"config.json of {REPO} is larger than 10000000 bytes" in message
    assert hub.lines == [f"GET {INFO}"]


@pytest.mark.parametrize(
    "field",
    ['"sha": "../../../etc"', '"sha": null', '"sha": "%s", "unlisted": 1' % ("a" * 40)],
)
def test_a_hub_whose_listing_cannot_be_used(hub: LoopbackHub, field: str) -> None:
    files = '[{"rfilename": "model.safetensors", "size": 3}]'
    hub.fault("/api/*", body=f'{{"id": "{REPO}", {field}, "siblings": {files}}}'.encode())
    message = failure(RunError)
    assert "lists no commit, size or SHA-256" in message
    assert len(hub.requests) == 1


def test_a_repository_of_pickles_is_never_loaded(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"pytorch_model.bin": b"\x80\x02", "config.json": b"{}"})
    message = failure(InputError)
    assert f"{REPO} has no model.safetensors (it holds config.json, pytorch_model.bin)" in message
    assert "safetensors.torch.save_file" in message
    assert loopback_hub.lines == [f"GET {INFO}"]


def test_an_empty_repository(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {})
    assert "(it is empty)" in failure(InputError)


def test_a_listed_file_that_is_no_safetensors(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"model.safetensors": b"not tensors at all"})
    assert "is not a usable safetensors file" in failure(InputError)


def test_encoder_without_a_repository(loopback_hub: LoopbackHub) -> None:
    with pytest.raises(InputError, match="timm names no repository on the Hub"):
        fetch_encoder("gcvit_tiny", "in1k", "")
    with pytest.raises(InputError, match="'a/b/c' is not a repository id like org/name"):
        fetch_encoder("resnet18", "", "a/b/c")


def test_all_problems_of_a_call_at_once(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "localhost:80")
    with pytest.raises(InputError) as caught:
        fetch(filename="pytorch_model.bin", revision="../main")
    header, *problems = str(caught.value).splitlines()
    assert header == "Cannot fetch the weights of encoder resnet18.a1_in1k:"
    assert problems == [
        "  - '../main' is not a commit, branch or tag",
        "  - HF_ENDPOINT must look like https://huggingface.co",
        "  - the file must be a plain *.safetensors name, not 'pytorch_model.bin'",
    ]
    assert loopback_hub.lines == []


@pytest.mark.parametrize("endpoint", ["http://", "http://host:port", "http://[", "ftp://host"])
def test_broken_endpoints(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert "HF_ENDPOINT must look like" in failure(InputError)


def test_hub_answers(hub: LoopbackHub, silences: list[float]) -> None:
    assert hub_answers(REPO) is True
    assert hub.lines == [f"GET {INFO}"]
    assert hub_answers("timm/missing") is False
    assert hub_answers("") is False
    hub.fault("/api/*", silent=True)
    assert hub_answers(REPO, timeout=0.2) is False
    assert silences == [0.2]
