"""What changes the loopback Hub: repositories, uploads, commits, branches and tags."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

from helpers.hub_server.state import (
    LFS_SUFFIXES,
    Repo,
    Request,
    Response,
    answer_json,
    error,
    find,
    git_id,
)

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub


def _refused(hub: LoopbackHub, request: Request) -> Response | None:
    if request.token not in hub.tokens:
        return error(401, "Invalid username or password.")
    if request.token not in hub.writers:
        return error(403, "This token has no write permission.")
    return None


def create_repo(hub: LoopbackHub, request: Request) -> Response:
    if refused := _refused(hub, request):
        return refused
    asked = request.content
    repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
    files = {".gitattributes": b"*.safetensors filter=lfs\n"}
    if asked.get("type") == "space":
        repo_id = f"spaces/{repo_id}"
        text = f"---\ntitle: {asked['name']}\nemoji: x\nsdk: {asked['sdk']}\n---\n\nSee the docs.\n"
        files["README.md"] = text.encode()
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repos:
        return answer_json({"error": "You already created this model repo", "url": url}, 409)
    private = asked.get("visibility") == "private" or asked.get("private") is True
    hub.add_repo(repo_id, files, private=private, readers=(request.token or "",))
    return answer_json({"url": url, "name": repo_id})


def validate_yaml(hub: LoopbackHub, request: Request) -> Response:
    return answer_json({"errors": [], "warnings": []})


def preupload(hub: LoopbackHub, request: Request, repo: str, revision: str) -> Response:
    found = find(hub, request, repo, revision, gate=True)
    if isinstance(found, Response):
        return found
    if "create_pr" not in request.query and (refused := _refused(hub, request)):
        return refused
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
            "shouldIgnore": False,
            "oid": git_id(found[1][file["path"]]) if file["path"] in found[1] else None,
        }
        for file in request.content["files"]
    ]
    return answer_json({"files": files})


def lfs_batch(hub: LoopbackHub, request: Request, repo: str) -> Response:
    if request.token not in hub.tokens:
        return error(401, "Invalid username or password.")
    objects = []
    for item in request.content["objects"]:
        entry = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in hub.objects:
            entry["actions"] = {
                "upload": {"href": f"{hub.cdn}/upload/{repo}/{item['oid']}"},
                "verify": {"href": f"{hub.endpoint}/api/verify/{repo}"},
            }
        objects.append(entry)
    return answer_json({"transfer": "basic", "objects": objects})


def upload(hub: LoopbackHub, request: Request, repo: str, sha256: str) -> Response:
    hub.objects[sha256] = request.body
    return Response(200)


def verify(hub: LoopbackHub, request: Request, repo: str) -> Response:
    asked = request.content
    held = hub.objects.get(asked["oid"])
    if held is None or hashlib.sha256(held).hexdigest() != asked["oid"]:
        hub.objects.pop(asked["oid"], None)
        return error(400, "The uploaded object is not the one announced")
    return answer_json({})


def commit(hub: LoopbackHub, request: Request, repo: str, revision: str) -> Response:
    found = find(hub, request, repo, revision, gate=True)
    if isinstance(found, Response):
        return found
    pull_request = "create_pr" in request.query
    if not pull_request and (refused := _refused(hub, request)):
        return refused
    head, _ = found
    files: dict[str, bytes] = {}
    summary, parent = "", None
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            summary, parent = value["summary"], value.get("parentCommit")
        elif item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                return error(400, "LFS pointer pointed to a file that does not exist")
            files[value["path"]] = hub.objects[value["oid"]]
    if parent is not None and parent != head and not pull_request:
        return error(412, "A commit has happened since. Please refresh and try again.")
    branch = revision
    if pull_request:
        number = sum(name.startswith("refs/pr/") for name in hub.repos[repo].refs) + 1
        branch = f"refs/pr/{number}"
        hub.repos[repo].refs[branch] = head
    made = hub.commit(repo, files, branch, message=summary)
    told = {"commitUrl": f"{hub.endpoint}/{repo}/commit/{made}", "commitOid": made}
    if pull_request:
        told["pullRequestUrl"] = f"{hub.endpoint}/{repo}/discussions/{branch.rsplit('/', 1)[1]}"
    return answer_json(told)


def _ref(hub: LoopbackHub, request: Request, repo: str, name: str, at: str) -> Response:
    found = find(hub, request, repo, at, gate=False)
    if isinstance(found, Response):
        return found
    if refused := _refused(hub, request):
        return refused
    held: Repo = hub.repos[repo]
    if name in held.refs:
        return error(409, f"Reference {name} exists already")
    held.refs[name] = found[0]
    return answer_json({})


def branch(hub: LoopbackHub, request: Request, repo: str, name: str) -> Response:
    asked = json.loads(request.body or b"{}")
    return _ref(hub, request, repo, name, asked.get("startingPoint", "main"))


def tag(hub: LoopbackHub, request: Request, repo: str, revision: str) -> Response:
    return _ref(hub, request, repo, request.content["tag"], revision)
