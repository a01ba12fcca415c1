"""The Hub's own cache of files (HF_HOME), shared with timm and every other client."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from zoo.common.console import info
from zoo.common.errors import RunError
from zoo.common.files import sha256, write_text
from zoo.remote.address import COMMIT
from zoo.remote.client import Task, explained
from zoo.remote.listing import DIGEST


def cached_commit(task: Task) -> str | None:
    """The commit that the revision named when it was last fetched, if it ever was."""
    if task.address.pinned:
        return task.address.revision
    note = task.folder / "refs" / task.address.branch
    try:
        commit = note.read_text().strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) else None


def cached_file(task: Task, name: str, commit: str) -> Path | None:
    """The file in the cache, if there and sound; a damaged one is deleted."""
    found = try_to_load_from_cache(
        task.repo, name, cache_dir=constants.HF_HUB_CACHE, revision=commit
    )
    if not isinstance(found, str):
        return None
    path = Path(found)
    with explained(task):
        blob = path.resolve()
        if DIGEST.fullmatch(blob.name) and blob.name != digest_of(path, blob.name):
            info(f"The cached file {name} of {task.repo} is damaged; deleted: {path}")
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            return None
    return path


def digest_of(path: Path, like: str) -> str:
    """The digest of a file, of the kind of `like`: 64 digits are SHA-256, 40 are git's id."""
    if len(like) == 64:
        return sha256(path)
    return git_id(path.read_bytes())


def git_id(content: bytes) -> str:
    """The id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def holds(path: Path, digest: str) -> bool:
    """Whether `path` is a file with that digest."""
    return path.is_file() and digest_of(path, digest) == digest


def link(pointer: Path, blob: Path) -> None:
    """Let `pointer` lead to `blob`; where links are not possible the file itself moves there."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{pointer.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        temporary.replace(pointer)
    except OSError:
        temporary.unlink(missing_ok=True)
        blob.replace(pointer)


def note_revision(task: Task, commit: str) -> None:
    """Remember which commit the revision named, for the day without a connection."""
    note = task.folder / "refs" / task.address.branch
    if task.address.branch == commit or (note.is_file() and note.read_text() == commit):
        return
    with contextlib.suppress(RunError):  # a cache that cannot be written to serves all the same
        write_text(note, commit)


def snapshot(task: Task, commit: str) -> Path:
    """The folder of the cache that shows the repository at `commit`."""
    return task.folder / "snapshots" / commit
