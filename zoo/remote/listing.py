"""What a repository holds at one commit: names, sizes and digests, in one request."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TypeGuard

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]

from zoo.common.errors import RunError
from zoo.remote.address import COMMIT
from zoo.remote.client import Task, explained, host, may_pass, no_hub

RETRY_PAUSE_S = 1.0
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Listed:
    """A file: its name, its size in bytes and its digest.

    The digest is the SHA-256 of a large file and git's id of a small one; it is also the name under
    which the Hub's cache keeps the file.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of a repository at `commit`, by name."""

    commit: str
    files: dict[str, Listed]


def ask(task: Task, timeout: float) -> Listing:
    """One request: the commit behind the revision and all its files.

    A failure that may pass is followed by one more try, unless the Hub was silent for `timeout`
    seconds. Raises InputError where the repository is missing or closed to the user, RunError where
    the Hub fails.
    """
    with explained(task):
        began = time.monotonic()
        try:
            return _ask(task, timeout)
        except HubTransportError as error:
            refused = type(error).__name__ == "ConnectError"
            if refused or not may_pass(error) or time.monotonic() - began >= timeout:
                raise
        time.sleep(RETRY_PAUSE_S)
        return _ask(task, timeout)


def _ask(task: Task, timeout: float) -> Listing:
    try:
        info = HfApi(library_name="zoo").model_info(
            task.repo, revision=task.address.revision, files_metadata=True, timeout=timeout
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(task.failure(no_hub(), "check HF_ENDPOINT and the proxy")) from error
    files, commit = {}, info.sha or ""
    for sibling in info.siblings or []:
        digest = sibling.blob_id if sibling.lfs is None else sibling.lfs.sha256
        if _is_size(sibling.size) and digest and DIGEST.fullmatch(digest):
            files[sibling.rfilename] = Listed(sibling.rfilename, sibling.size, digest)
        else:
            commit = ""
    if not COMMIT.fullmatch(commit):
        reason = f"{host()} lists no commit, size or SHA-256, so that no download can be verified"
        raise RunError(task.failure(reason))
    return Listing(commit, files)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
