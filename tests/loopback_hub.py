"""A Hugging Face Hub on the loopback address, held in memory, for tests over real HTTP.

Files ending in one of `LFS_SUFFIXES` are stored the way the Hub stores large files: their ETag is
the SHA-256 and they are served by a "CDN", the same port under the other loopback name, so that a
client sees a foreign origin. Every request is logged; faults are injected per path pattern.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pth")
INVERTED = bytes(255 - value for value in range(256))


@dataclass(frozen=True)
class Request:
    """One logged request; header names are lower case, `path` has no query."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    @property
    def token(self) -> str | None:
        """The bearer token that came with the request."""
        value = self.headers.get("authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None

    @property
    def line(self) -> str:
        """Method and path, as the tests compare them."""
        return f"{self.method} {self.path}"


@dataclass
class Response:
    """What the server answers before any fault is applied."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Repo:
    """A repository: commits by id, and the ids that its branches and tags point at."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    private: bool
    gated: bool
    readers: frozenset[str]

    def commit_id(self, revision: str) -> str | None:
        """The commit behind a branch, a tag or a commit id."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Fault:
    """What goes wrong for requests that match `method` and `pattern` (fnmatch on the path).

    `delay` waits that many seconds first. `status` replaces the answer. `wrong` inverts every byte
    of the body. `cut` sends that many bytes of the body and then closes the connection, or with
    `silent` keeps it open without a word. `silent` alone never answers. `drop` closes the
    connection without an answer. The fault ends after `times` requests.
    """

    pattern: str
    method: str = "*"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    cut: int | None = None
    wrong: bool = False
    drop: bool = False
    silent: bool = False
    times: int | None = None


class LoopbackHub:
    """The server; `tokens` are the bearer tokens it knows, `requests` is the log."""

    def __init__(self, port: int = 0, tokens: tuple[str, ...] = ("fake",)) -> None:
        self.tokens = frozenset(tokens)
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", port), self)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        """The foreign origin that serves large files."""
        return f"http://localhost:{self.port}"

    @property
    def lines(self) -> list[str]:
        """The log as `METHOD PATH` lines."""
        return [request.line for request in self.requests]

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes],
        *,
        private: bool = False,
        gated: bool = False,
        readers: tuple[str, ...] = (),
    ) -> str:
        """Create a repository with one commit on `main`; returns the commit's id.

        `readers` are the tokens that may read where the repository is private or gated.
        """
        self.repos[repo_id] = Repo({}, {}, private, gated, frozenset(readers))
        return self.commit(repo_id, files)

    def commit(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit that changes or adds `files` on top of `branch`; returns its id."""
        repo = self.repos[repo_id]
        parent = repo.commits.get(repo.refs.get(branch, ""), {})
        text = f"{repo_id} {len(repo.commits)} {branch}".encode()
        commit = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        repo.commits[commit] = {**parent, **files}
        repo.refs[branch] = commit
        return commit

    def fault(self, pattern: str, **settings: Any) -> Fault:
        """Inject a `Fault`; the one added last is asked first."""
        added = Fault(pattern, **settings)
        with self._lock:
            self.faults.insert(0, added)
        return added

    def take_fault(self, request: Request) -> Fault | None:
        """The fault that this request meets, counted down."""
        with self._lock:
            for fault in self.faults:
                fits = fault.method in ("*", request.method)
                if fits and fault.times != 0 and fnmatch.fnmatchcase(request.path, fault.pattern):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def reset(self) -> None:
        """Forget repositories, faults and the log, and let go of silent connections."""
        self.released.set()
        self._close_connections()
        self.released = threading.Event()
        self.repos.clear()
        self.requests.clear()
        self.faults.clear()

    def stop(self) -> None:
        """Stop serving; connections that clients keep alive are closed too."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._close_connections()
        self._thread.join(timeout=5)

    def track(self, connection: socket.socket, alive: bool) -> None:
        """Note that a connection was opened or closed."""
        with self._lock:
            (self._connections.add if alive else self._connections.discard)(connection)

    def _close_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], hub: LoopbackHub) -> None:
        self.hub = hub
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.hub.track(self.connection, alive=True)

    def finish(self) -> None:
        self.server.hub.track(self.connection, alive=False)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean; the hub has its own log."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            self.command, unquote(url.path), parse_qs(url.query, keep_blank_values=True), headers
        )
        hub.requests.append(request)
        fault = hub.take_fault(request) or Fault("")
        if fault.delay:
            hub.released.wait(fault.delay)
        if fault.drop or (fault.silent and fault.cut is None):
            self._hang_up(fault.silent)
            return
        response = _answer(hub, request)
        if fault.status is not None or fault.body is not None:
            body = fault.body if fault.body is not None else b'{"error": "injected"}'
            headers = {"Content-Type": "application/json", **fault.headers}
            response = Response(fault.status or 200, headers, body)
        self._send(response, fault)

    def _send(self, response: Response, fault: Fault) -> None:
        body = response.body.translate(INVERTED) if fault.wrong else response.body
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.cut is None:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: fault.cut])
            self.wfile.flush()
            self._hang_up(fault.silent)

    def _hang_up(self, silent: bool) -> None:
        if silent:
            self.server.hub.released.wait(60)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _answer(hub: LoopbackHub, request: Request) -> Response:
    for methods, pattern, route in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and request.method in methods:
            return route(hub, request, **match.groupdict())
    return _error(404, "Sorry, we can't find the page you are looking for.")


def _info(hub: LoopbackHub, request: Request, repo: str, revision: str | None) -> Response:
    found = _find(hub, request, repo, revision or "main", gate=False)
    if isinstance(found, Response):
        return found
    commit, files = found
    listed = [_file_entry(name, content, "rfilename") for name, content in sorted(files.items())]
    if "blobs" not in request.query:
        listed = [{"rfilename": entry["rfilename"]} for entry in listed]
    held = hub.repos[repo]
    gated = "auto" if held.gated else False
    return _json(
        {
            "_id": commit[:24],
            "id": repo,
            "modelId": repo,
            "author": repo.partition("/")[0],
            "sha": commit,
            "private": held.private,
            "gated": gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": listed,
        }
    )


def _tree(hub: LoopbackHub, request: Request, repo: str, revision: str) -> Response:
    found = _find(hub, request, repo, revision, gate=False)
    if isinstance(found, Response):
        return found
    files = sorted(found[1].items())
    return _json([{"type": "file", **_file_entry(name, data, "path")} for name, data in files])


def _resolve(
    hub: LoopbackHub, request: Request, repo: str, revision: str, filename: str
) -> Response:
    found = _find(hub, request, repo, revision, gate=True)
    if isinstance(found, Response):
        return found
    commit, files = found
    if filename not in files:
        missing = _error(404, "Entry not found", "EntryNotFound")
        missing.headers["X-Repo-Commit"] = commit
        return missing
    content = files[filename]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(filename, content)}"'}
    if not filename.endswith(LFS_SUFFIXES):
        return _ranged(request, content, headers)
    sha256 = _etag(filename, content)
    headers |= {
        "X-Linked-Etag": f'"{sha256}"',
        "X-Linked-Size": str(len(content)),
        "Location": f"{hub.cdn}/cdn/{quote(repo)}/{sha256}",
    }
    return Response(302, headers, b"Found. Redirecting.")


def _cdn(hub: LoopbackHub, request: Request, repo: str, sha256: str) -> Response:
    for files in hub.repos[repo].commits.values() if repo in hub.repos else ():
        for content in files.values():
            if hashlib.sha256(content).hexdigest() == sha256:
                return _ranged(request, content, {"ETag": f'"{sha256}"'})
    return _error(404, "Not found")


Route = Callable[..., Response]
ROUTES: list[tuple[tuple[str, ...], str, Route]] = [
    (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", _info),
    (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", _tree),
    (("GET", "HEAD"), r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})", _cdn),
    (
        ("GET", "HEAD"),
        r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<filename>.+)",
        _resolve,
    ),
]


def _find(
    hub: LoopbackHub, request: Request, repo_id: str, revision: str, *, gate: bool
) -> tuple[str, dict[str, bytes]] | Response:
    """The commit and its files, or the Hub's answer to who may not read or asks for too much."""
    if request.token is not None and request.token not in hub.tokens:
        return _error(401, "Invalid credentials in Authorization header")
    repo = hub.repos.get(repo_id)
    if repo is None or (repo.private and request.token not in repo.readers):
        status = 401 if request.token is None else 404
        return _error(status, "Repository not found", "RepoNotFound")
    if gate and repo.gated and request.token not in repo.readers:
        status = 401 if request.token is None else 403
        return _error(status, f"Access to model {repo_id} is restricted.", "GatedRepo")
    commit = repo.commit_id(revision)
    if commit is None:
        return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit, repo.commits[commit]


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not match:
        return Response(200, headers, content)
    first = int(match[1])
    last = min(int(match[2] or len(content) - 1), len(content) - 1)
    if first > last:
        return Response(416, {"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(206, headers, content[first : last + 1])


def _file_entry(name: str, content: bytes, name_key: str) -> dict[str, Any]:
    """A file as `siblings` (name_key "rfilename") or as the tree (name_key "path") lists it."""
    id_key = "blobId" if name_key == "rfilename" else "oid"
    entry: dict[str, Any] = {name_key: name, "size": len(content), id_key: _git_id(content)}
    if name.endswith(LFS_SUFFIXES):
        sha_key = "sha256" if name_key == "rfilename" else "oid"
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {sha_key: sha256, "size": len(content), "pointerSize": 134}
    return entry


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(LFS_SUFFIXES) else _git_id(content)


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _json(value: object) -> Response:
    return Response(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _error(status: int, message: str, code: str | None = None) -> Response:
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return Response(status, headers, json.dumps({"error": message}).encode())
