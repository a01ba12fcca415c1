"""Files of a repository in the Hub's own cache (HF_HOME), which every client of the Hub shares.

`hf_hub_download` keeps a file whatever bytes came, so each file is compared with the digest that
the Hub lists before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import SafetensorsParsingError

from zoo.common.console import info, warn
from zoo.common.errors import InputError, RunError, ZooError
from zoo.common.files import sha256, write_text
from zoo.remote.address import COMMIT
from zoo.remote.client import (
    DIGEST,
    Listing,
    Task,
    UnreadableAnswerError,
    api,
    call,
    explained,
    host,
    list_files,
    reason,
)

ANNOUNCED_FROM_BYTES = 100_000
MAX_ERROR_BYTES = 1_000_000
"""What may come in place of a file that is smaller."""


def listing_or_cached(task: Task, names: Collection[str], timeout: float) -> Listing | Path:
    """The files of a repository, or the folder in the cache that holds `names`.

    The folder is given for a full commit, which needs no request, and with a warning where the Hub
    cannot be asked. Raises what `list_files` raises where neither is to be had.
    """
    if task.address.pinned and (folder := _cached(task, names)):
        return folder
    try:
        return list_files(task, timeout)
    except ZooError as error:
        if (folder := _cached(task, names)) is None:
            raise
        warn(f"{reason(error)} Using revision {folder.name[:12]} from the cache.")
        return folder


def _cached(task: Task, names: Collection[str]) -> Path | None:
    """The folder of the cache that holds all `names` at the commit that is known there."""
    commit = task.address.branch
    if not task.address.pinned:
        try:
            commit = (task.folder / "refs" / task.address.branch).read_text().strip()
        except OSError:
            return None
    if not COMMIT.fullmatch(commit) or not all(cached_file(task, n, commit) for n in names):
        return None
    return snapshot(task, commit)


def download(
    task: Task, listing: Listing, name: str, timeout: float, limit: int | None = None
) -> Path:
    """A listed file in the cache, downloaded unless it is there already.

    Raises InputError, before any request, for a file of more than `limit` bytes, and RunError where
    other bytes come than the Hub lists; they are deleted then.
    """
    listed = listing.files[name]
    if limit is not None and listed.size > limit:
        raise InputError(f"{name} of {task.repo} is larger than {limit} bytes; refused.")
    if name.endswith(".safetensors") and len(listed.digest) != 64:
        text = f"{host()} lists no SHA-256 of {name}, so the download cannot be verified"
        raise RunError(task.failure(text))
    path, blob = snapshot(task, listing.commit) / name, task.folder / "blobs" / listed.digest
    with explained(task):
        if holds(path, listed.digest):
            return path
        path.unlink(missing_ok=True)
        if blob.exists() and not holds(blob, listed.digest):
            blob.unlink()
    if listed.size >= ANNOUNCED_FROM_BYTES and not blob.exists():
        info(f"Downloading {name} of {task.repo} ({listed.size / 1e6:.1f} MB).")
    call(
        task,
        timeout,
        lambda: hf_hub_download(
            task.repo,
            name,
            revision=listing.commit,
            cache_dir=constants.HF_HUB_CACHE,
            etag_timeout=timeout,
            library_name="zoo",
        ),
        limit=max(listed.size, MAX_ERROR_BYTES),
    )
    with explained(task):
        digest = digest_of(path, listed.digest)
        if digest == listed.digest:
            return path
        size = path.stat().st_size
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    difference = (
        f"the downloaded file ({size} bytes, digest {digest[:12]}...) is not the one that the Hub "
        f"lists ({listed.size} bytes, {listed.digest[:12]}...); it was deleted"
    )
    raise RunError(task.failure(difference, "run the command again"))


def read_shapes(
    task: Task, listing: Listing, name: str, timeout: float
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a listed safetensors file, without downloading it.

    Raises RunError where what came is no safetensors header.
    """

    def ask() -> dict[str, list[int]]:
        found = api().parse_safetensors_file_metadata(
            task.repo, name, revision=listing.commit, timeout=timeout
        )
        return {key: tensor.shape for key, tensor in found.tensors.items()}

    try:
        shapes = call(task, timeout, ask)
        sides = [side for shape in shapes.values() for side in shape]
        if not shapes or not all(type(side) is int and 0 <= side < 2**40 for side in sides):
            raise SafetensorsParsingError("a shape that no tensor has")
    except (SafetensorsParsingError, UnreadableAnswerError) as error:
        found = f"the start of {name} is not the header of a safetensors file"
        step = "run the command again; if it fails again, the file in the repository is damaged"
        raise RunError(task.failure(found, step)) from error
    return {name: tuple(shape) for name, shape in shapes.items()}


def cached_file(task: Task, name: str, commit: str) -> Path | None:
    """The file in the cache, if it is there and undamaged; a damaged one is deleted."""
    found = try_to_load_from_cache(
        task.repo, name, cache_dir=constants.HF_HUB_CACHE, revision=commit
    )
    if not isinstance(found, str):
        return None
    path = Path(found)
    with explained(task):
        blob = path.resolve()
        if DIGEST.fullmatch(blob.name) and blob.name != digest_of(path, blob.name):
            warn(f"The cached file {name} of {task.repo} is damaged; deleted: {path}")
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            return None
    return path


def note_revision(task: Task, commit: str) -> None:
    """Remember which commit the revision named, for work without a connection."""
    note = task.folder / "refs" / task.address.branch
    if task.address.branch == commit or (note.is_file() and note.read_text() == commit):
        return
    with contextlib.suppress(RunError):  # the files can be used from a read-only cache too
        write_text(note, commit)


def snapshot(task: Task, commit: str) -> Path:
    """The folder of the cache that shows the repository at `commit`."""
    return task.folder / "snapshots" / commit


def holds(path: Path, digest: str) -> bool:
    """Whether `path` is a file with that digest."""
    return path.is_file() and digest_of(path, digest) == digest


def digest_of(content: Path | bytes, like: str) -> str:
    """The digest of a file or of bytes, of the kind of `like`: 64 digits are SHA-256, 40 git's."""
    if len(like) == 64:
        return sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    held = content.read_bytes() if isinstance(content, Path) else content
    return hashlib.sha1(b"blob %d\0" % len(held) + held, usedforsecurity=False).hexdigest()
