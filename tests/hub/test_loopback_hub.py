"""The loopback Hub itself: what the Hub's client and a plain HTTP client see of it."""

from __future__ import annotations

import hashlib
import http.client
import json

import huggingface_hub
import pytest
from helpers.hub_server import LoopbackHub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

REPO = "org/net"
BYTES = bytes(range(200))
SHA256 = hashlib.sha256(BYTES).hexdigest()


def ask(
    hub: LoopbackHub, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=2)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_head_of_a_large_file_points_to_the_cdn(loopback_hub: LoopbackHub) -> None:
    commit = loopback_hub.add_repo(REPO, {"model.safetensors": BYTES})
    response, body = ask(loopback_hub, "HEAD", f"/{REPO}/resolve/main/model.safetensors")
    assert (response.status, body) == (302, b"")
    assert response.headers["X-Repo-Commit"] == commit
    assert response.headers["X-Linked-Etag"] == f'"{SHA256}"'
    assert response.headers["X-Linked-Size"] == "200"
    cdn = f"http://localhost:{loopback_hub.port}/cdn/{REPO}/{SHA256}"
    assert response.headers["Location"] == cdn


def test_small_file_is_served_with_its_git_id(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"greeting.txt": b"hello\n"})
    response, body = ask(loopback_hub, "GET", f"/{REPO}/resolve/main/greeting.txt")
    assert (response.status, body) == (200, b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin`
    assert response.headers["ETag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("bytes=10-19", 206, "bytes 10-19/200", BYTES[10:20]),
        ("bytes=190-", 206, "bytes 190-199/200", BYTES[190:]),
        ("bytes=190-999", 206, "bytes 190-199/200", BYTES[190:]),
        ("bytes=200-", 416, "bytes */200", b""),
        ("lines=1-2", 200, None, BYTES),
    ],
)
def test_ranges(
    loopback_hub: LoopbackHub, asked: str, status: int, content_range: str | None, body: bytes
) -> None:
    loopback_hub.add_repo(REPO, {"model.safetensors": BYTES})
    response, got = ask(loopback_hub, "GET", f"/cdn/{REPO}/{SHA256}", {"Range": asked})
    assert (response.status, response.headers["Content-Range"], got) == (
        status,
        content_range,
        body,
    )


def test_info_tree_and_revisions_through_the_client(loopback_hub: LoopbackHub) -> None:
    first = loopback_hub.add_repo(REPO, {"model.safetensors": BYTES, "config.json": b"{}"})
    second = loopback_hub.commit(REPO, {"README.md": b"# Net"})
    api = huggingface_hub.HfApi()
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == second
    assert {file.rfilename: file.size for file in info.siblings or []} == {
        "README.md": 5,
        "config.json": 2,
        "model.safetensors": 200,
    }
    lfs = {file.rfilename: file.lfs and file.lfs.sha256 for file in info.siblings or []}
    assert lfs == {"README.md": None, "config.json": None, "model.safetensors": SHA256}
    assert api.model_info(REPO, revision=first).sha == first
    assert api.list_repo_files(REPO, revision=first) == ["config.json", "model.safetensors"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v1")
    assert not api.file_exists(REPO, "pytorch_model.bin")


def test_the_client_downloads_and_caches(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"model.safetensors": BYTES, "config.json": b"{}"})
    for name, content in (("model.safetensors", BYTES), ("config.json", b"{}")):
        path = huggingface_hub.hf_hub_download(REPO, name)
        with open(path, "rb") as file:
            assert file.read() == content
    tokens = [request.token for request in loopback_hub.requests if "/cdn/" in request.path]
    assert tokens == [None]


def test_who_may_read(loopback_hub: LoopbackHub) -> None:
    api = huggingface_hub.HfApi()
    loopback_hub.add_repo("org/private", {"config.json": b"{}"}, private=True)
    loopback_hub.add_repo("org/gated", {"config.json": b"{}"}, gated=True, readers=("other",))
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/private")
    assert api.model_info("org/gated").gated == "auto"
    with pytest.raises(GatedRepoError):
        huggingface_hub.hf_hub_download("org/gated", "config.json")
    path = "/api/models/org/private"
    assert ask(loopback_hub, "GET", path)[0].status == 401
    assert ask(loopback_hub, "GET", path, {"Authorization": "Bearer stolen"})[0].status == 401
    assert ask(loopback_hub, "GET", path, {"Authorization": "Bearer fake"})[0].status == 404


def test_faults_are_counted_and_the_last_one_added_comes_first(loopback_hub: LoopbackHub) -> None:
    loopback_hub.add_repo(REPO, {"config.json": b"{}"})
    path = f"/{REPO}/resolve/main/config.json"
    loopback_hub.fault(f"/{REPO}/*", wrong=True, times=1)
    loopback_hub.fault(f"/{REPO}/*", method="GET", status=503, times=1)
    assert ask(loopback_hub, "GET", path)[0].status == 503
    assert ask(loopback_hub, "GET", path)[1] == bytes([255 - ord("{"), 255 - ord("}")])
    assert ask(loopback_hub, "GET", path)[1] == b"{}"
    assert loopback_hub.lines == [f"GET {path}"] * 3


def test_unknown_pages_are_errors_with_a_body(loopback_hub: LoopbackHub) -> None:
    response, body = ask(loopback_hub, "GET", "/nowhere")
    assert response.status == 404
    assert "error" in json.loads(body)


def test_stop_closes_connections_that_are_kept_alive() -> None:
    hub = LoopbackHub()
    hub.add_repo(REPO, {"config.json": b"{}"})
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=2)
    connection.request("GET", f"/{REPO}/resolve/main/config.json")
    assert connection.getresponse().read() == b"{}"
    assert connection.sock is not None
    hub.stop()
    assert connection.sock.recv(1) == b""
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        ask(hub, "GET", "/")
