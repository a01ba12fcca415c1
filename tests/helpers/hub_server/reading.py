"""What the loopback Hub answers to those who read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import quote

from helpers.hub_server.state import (
    LFS_SUFFIXES,
    Request,
    Response,
    answer_json,
    error,
    etag,
    file_entry,
    find,
    ranged,
)

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub


def info(hub: LoopbackHub, request: Request, repo: str, revision: str | None) -> Response:
    found = find(hub, request, repo, revision or "main", gate=False)
    if isinstance(found, Response):
        return found
    commit, files = found
    listed = [file_entry(name, content, "rfilename") for name, content in sorted(files.items())]
    if "blobs" not in request.query:
        listed = [{"rfilename": entry["rfilename"]} for entry in listed]
    held = hub.repos[repo]
    gated = "auto" if held.gated else False
    return answer_json(
        {
            "_id": commit[:24],
            "id": repo.removeprefix("spaces/"),
            "modelId": repo,
            "author": repo.removeprefix("spaces/").partition("/")[0],
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


def tree(hub: LoopbackHub, request: Request, repo: str, revision: str) -> Response:
    found = find(hub, request, repo, revision, gate=False)
    if isinstance(found, Response):
        return found
    files = sorted(found[1].items())
    return answer_json([{"type": "file", **file_entry(name, data, "path")} for name, data in files])


def resolve(
    hub: LoopbackHub, request: Request, repo: str, revision: str, filename: str
) -> Response:
    found = find(hub, request, repo, revision, gate=True)
    if isinstance(found, Response):
        return found
    commit, files = found
    if filename not in files:
        missing = error(404, "Entry not found", "EntryNotFound")
        missing.headers["X-Repo-Commit"] = commit
        return missing
    content = files[filename]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(filename, content)}"'}
    if not filename.endswith(LFS_SUFFIXES):
        return ranged(request, content, headers)
    sha256 = etag(filename, content)
    headers |= {
        "X-Linked-Etag": f'"{sha256}"',
        "X-Linked-Size": str(len(content)),
        "Location": f"{hub.cdn}/cdn/{quote(repo)}/{sha256}",
    }
    return Response(302, headers, b"Found. Redirecting.")


def cdn(hub: LoopbackHub, request: Request, repo: str, sha256: str) -> Response:
    for files in hub.repos[repo].commits.values() if repo in hub.repos else ():
        for content in files.values():
            if hashlib.sha256(content).hexdigest() == sha256:
                return ranged(request, content, {"ETag": f'"{sha256}"'})
    return error(404, "Not found")


def models(hub: LoopbackHub, request: Request) -> Response:
    author = request.query.get("author", [""])[0]
    return answer_json(
        [
            {"_id": "0" * 24, "id": name, "modelId": name, "private": held.private, "tags": []}
            for name, held in sorted(hub.repos.items())
            if name.startswith(f"{author}/")
            and not (held.private and request.token not in held.readers)
        ]
    )
