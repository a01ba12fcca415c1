"""What the loopback Hub holds and logs: requests, answers, repositories, faults."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".png", ".jpg")


@dataclass(frozen=True)
class Request:
    """One logged request; header names are lower case, `path` has no query."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def token(self) -> str | None:
        """The bearer token that came with the request."""
        value = self.headers.get("authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None

    @property
    def line(self) -> str:
        """Method and path, as the tests compare them."""
        return f"{self.method} {self.path}"

    @property
    def content(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


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
    messages: dict[str, str] = field(default_factory=dict)

    def commit_id(self, revision: str) -> str | None:
        """The commit behind a branch, a tag or a commit id."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Fault:
    """What goes wrong for requests that match `method` and `pattern` (fnmatch on the path).

    `delay` waits that many seconds first. `status` replaces the answer; nothing is done then.
    `wrong` inverts every byte of the answer, and of a file that is put, as it arrives. `cut` sends
    that many bytes of the body and then closes the connection, or with `silent` keeps it open
    without a word. `silent` alone never answers. `drop` closes the connection without an answer.
    `drip` waits that many seconds before each byte of the body, with `head` of the whole answer;
    `endless` sends a body in chunks that never ends.
    With `after` the request is carried out before the answer goes wrong. `call` runs when the fault
    strikes. The fault lets `skip` requests pass and ends after `times` more.
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
    drip: float = 0.0
    head: bool = False
    endless: bool = False
    after: bool = False
    call: Callable[[], object] | None = None
    skip: int = 0
    times: int | None = None

    def fits(self, method: str, path: str) -> bool:
        """Whether the fault is about such a request, and not used up."""
        known = self.method in ("*", method) and fnmatch.fnmatchcase(path, self.pattern)
        return known and self.times != 0


Route = Callable[..., Response]


def find(
    hub: LoopbackHub, request: Request, repo_id: str, revision: str, *, gate: bool
) -> tuple[str, dict[str, bytes]] | Response:
    """The commit and its files, or the Hub's answer to who may not read or asks for too much."""
    if request.token is not None and request.token not in hub.tokens:
        return error(401, "Invalid credentials in Authorization header")
    repo = hub.repos.get(repo_id)
    if repo is None or (repo.private and request.token not in repo.readers):
        status = 401 if request.token is None else 404
        return error(status, "Repository not found", "RepoNotFound")
    if gate and repo.gated and request.token not in repo.readers:
        status = 401 if request.token is None else 403
        return error(status, f"Access to model {repo_id} is restricted.", "GatedRepo")
    commit = repo.commit_id(revision)
    if commit is None:
        return error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit, repo.commits[commit]


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """The part of `content` that the request asks for."""
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


def file_entry(name: str, content: bytes, name_key: str) -> dict[str, Any]:
    """A file as `siblings` (name_key "rfilename") or as the tree (name_key "path") lists it."""
    id_key = "blobId" if name_key == "rfilename" else "oid"
    entry: dict[str, Any] = {name_key: name, "size": len(content), id_key: git_id(content)}
    if name.endswith(LFS_SUFFIXES):
        sha_key = "sha256" if name_key == "rfilename" else "oid"
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {sha_key: sha256, "size": len(content), "pointerSize": 134}
    return entry


def etag(name: str, content: bytes) -> str:
    """The file's ETag: SHA-256 of a large file, git's id of a small one."""
    return hashlib.sha256(content).hexdigest() if name.endswith(LFS_SUFFIXES) else git_id(content)


def git_id(content: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def answer_json(value: object, status: int = 200) -> Response:
    """An answer with a JSON body."""
    return Response(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def error(status: int, message: str, code: str | None = None) -> Response:
    """An answer with an error as the Hub gives it."""
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    return Response(status, headers, json.dumps({"error": message}).encode())
