"""A Hugging Face Hub on the loopback address, held in memory, for tests over real HTTP.

Files ending in one of `LFS_SUFFIXES` are stored the way the Hub stores large files: their ETag is
the SHA-256 and they are served by a "CDN", the same port under the other loopback name, so that a
client sees a foreign origin. Every request is logged; faults are injected per path pattern.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.hub_server import reading, writing
from helpers.hub_server.state import Fault, Repo, Request, Response, Route, error

INVERTED = bytes(255 - value for value in range(256))


class LoopbackHub:
    """The server; `tokens` are the bearer tokens it knows, `requests` is the log.

    `writers` are the tokens that may write, `objects` the large files that were uploaded. The
    repository of a Space is held as "spaces/ORG/NAME".
    """

    def __init__(self, port: int = 0, tokens: tuple[str, ...] = ("fake",)) -> None:
        self.tokens = frozenset(tokens)
        self.writers = self.tokens
        self.objects: dict[str, bytes] = {}
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

    def commit(
        self, repo_id: str, files: dict[str, bytes], branch: str = "main", message: str = ""
    ) -> str:
        """Add a commit that changes or adds `files` on top of `branch`; returns its id."""
        repo = self.repos[repo_id]
        parent = repo.commits.get(repo.refs.get(branch, ""), {})
        text = f"{repo_id} {len(repo.commits)} {branch}".encode()
        commit = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        repo.commits[commit] = {**parent, **files}
        repo.messages[commit] = message
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
                if fault.fits(request.method, request.path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def will_be_silent(self, method: str, path: str) -> bool:
        """Whether the next such request gets no answer."""
        with self._lock:
            fitting = (f for f in self.faults if f.fits(method, path) and not f.skip)
            return any(fault.silent for fault in fitting)

    def reset(self) -> None:
        """Forget repositories, faults and the log, and let go of silent connections."""
        self.released.set()
        self._close_connections()
        self.released = threading.Event()
        self.repos.clear()
        self.objects.clear()
        self.writers = self.tokens
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

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(url.query, keep_blank_values=True)
        path = unquote(url.path)
        body = self._body(headers)
        request = Request(self.command, path, query, headers, body)
        hub.requests.append(request)
        fault = hub.take_fault(request) or Fault("")
        if fault.call is not None:
            fault.call()
        if fault.delay:
            hub.released.wait(fault.delay)
        lost = fault.drop or (fault.silent and fault.cut is None)
        if lost and not fault.after:
            self._hang_up(fault.silent)
            return
        if fault.wrong and self.command == "PUT":
            request = Request(self.command, path, query, headers, body.translate(INVERTED))
        replaced = fault.status is not None or fault.body is not None
        response = Response() if replaced and not fault.after else _answer(hub, request)
        if lost:
            self._hang_up(fault.silent)
            return
        if replaced:
            content = fault.body if fault.body is not None else b'{"error": "injected"}'
            told = {"Content-Type": "application/json", **fault.headers}
            response = Response(fault.status or 200, told, content)
        self._send(response, fault)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        parts = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, response: Response, fault: Fault) -> None:
        body = response.body.translate(INVERTED) if fault.wrong else response.body
        if fault.drip and fault.head:
            self._drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 10_000, fault.drip)
            return
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if fault.endless:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.endless:
            while True:
                self.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        elif fault.drip:
            self._drip(body, fault.drip)
        elif fault.cut is None:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: fault.cut])
            self.wfile.flush()
            self._hang_up(fault.silent)

    def _drip(self, content: bytes, seconds: float) -> None:
        for value in content:
            self.server.hub.released.wait(seconds)
            self.wfile.write(bytes([value]))
            self.wfile.flush()

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
    return error(404, "Sorry, we can't find the page you are looking for.")


REPO = r"(?P<repo>(?:spaces/)?[^/]+/[^/]+)"
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
API = rf"/api/(?:models/|datasets/|(?=spaces/)){REPO}"
ROUTES: list[tuple[tuple[str, ...], str, Route]] = [
    (("GET",), r"/api/models", reading.models),
    (("GET",), rf"{API}(?:/revision/(?P<revision>.+))?", reading.info),
    (("GET",), rf"{API}/tree/{REVISION}", reading.tree),
    (("GET", "HEAD"), rf"/cdn/{REPO}/(?P<sha256>[0-9a-f]{{64}})", reading.cdn),
    (
        ("GET", "HEAD"),
        rf"(?:/datasets)?/{REPO}/resolve/{REVISION}/(?P<filename>.+)",
        reading.resolve,
    ),
    (("POST",), r"/api/repos/create", writing.create_repo),
    (("POST",), r"/api/validate-yaml", writing.validate_yaml),
    (("POST",), rf"{API}/preupload/{REVISION}", writing.preupload),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", writing.lfs_batch),
    (("PUT",), rf"/upload/{REPO}/(?P<sha256>[0-9a-f]{{64}})", writing.upload),
    (("POST",), rf"/api/verify/{REPO}", writing.verify),
    (("POST",), rf"{API}/commit/{REVISION}", writing.commit),
    (("POST",), rf"{API}/branch/(?P<name>.+)", writing.branch),
    (("POST",), rf"{API}/tag/{REVISION}", writing.tag),
]
