"""Files of a repository in the Hub's own cache (HF_HOME), which every client of the Hub shares.

`hf_hub_download` keeps a file whatever bytes came, so each file is compared with the digest that
the Hub lists before it is used. The digests are kept beside the snapshots, in `zoo/COMMIT.json`, so
that a copy of the cache in which links became files can be verified without the Hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import SafetensorsParsingError

from zoo.common.console import info, warn
from zoo.common.errors import InputError, RunError, ZooError, join_problems, shortened
from zoo.common.files import locked, read_json, sha256, write_json, write_text
from zoo.remote.address import COMMIT, PREFIX, Address, snapshot_origin
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
MAX_DIGESTS_BYTES = 50_000_000
TRUST = "ZOO_TRUST_HUB_CACHE"
MAX_ERROR_BYTES = 1_000_000
"""What may come in place of a file that is smaller."""


def listing_or_cached(task: Task, names: Collection[str], timeout: float) -> Listing | Path:
    """The files of a repository, or the folder in the cache that holds `names`, verified.

    The folder is given for a full commit whose digests are kept, which needs no request, and with a
    warning where the Hub cannot be asked. Raises what `list_files` raises where neither is to be
    had, and RunError where the Hub cannot be asked and the cache does not say what the files
    should be.
    """
    commit, unverified = _known_commit(task), []
    folder = None if commit is None else snapshot(task, commit)
    if folder is not None:
        for name in names:
            state = cached_state(folder, name)
            if state == "missing":
                folder = None
                break
            if state == "unverified":
                unverified.append(name)
    if folder is not None and task.address.pinned and set(names) <= _kept_digests(folder).keys():
        return folder
    try:
        return list_files(task, timeout)
    except ZooError as error:
        if folder is None:
            raise
        if unverified and not trusts_cache():
            raise _not_verified(task.goal, folder, unverified, reason(error)) from error
        unchecked = ", not verified" if unverified else ""
        warn(f"{reason(error)} Using revision {folder.name[:12]} from the cache{unchecked}.")
        return folder


def check_snapshot(folder: Path, names: Collection[str]) -> None:
    """Raise where the files of a snapshot that is named by its path are not those of the Hub.

    A folder anywhere else passes. InputError for a file that is damaged, RunError for one of which
    the cache does not say what it should be.
    """
    if snapshot_origin(folder) is None:
        return
    folder = folder.resolve()
    states = {name: cached_state(folder, name, keep=True) for name in names}
    if damaged := [name for name, state in states.items() if state == "damaged"]:
        raise InputError(
            f"{folder} is in the Hub's cache, but {shortened(damaged)} is not the file of that "
            f"commit: it is damaged, or was changed. Run {_verify(folder)} with a connection, or "
            "copy the folder out of the cache to use it as it is."
        )
    unverified = [name for name, state in states.items() if state == "unverified"]
    if unverified and not trusts_cache():
        raise _not_verified(f"use {folder}", folder, unverified, "")


def check_cached_data(task: Task, timeout: float) -> None:
    """Verify what the cache holds of a repository, before another library reads it there.

    A damaged file is deleted with a warning, so that the library downloads it again. Raises
    RunError where the Hub cannot be asked and the cache does not say what a file should be.
    """
    listing, why = None, ""
    try:
        listing = list_files(task, timeout)
    except ZooError as error:
        why = reason(error)
    commit = listing.commit if listing is not None else _known_commit(task)
    folder = None if commit is None else snapshot(task, commit)
    if folder is None or not folder.is_dir():
        return
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if listing is not None:
        listed = [name for name in names if name in listing.files]
        kept = [name for name in listed if holds(folder / name, listing.files[name].digest)]
        for name in set(listed) - set(kept):
            warn(f"The cached file {name} of {task.repo} is damaged; deleted: {folder / name}")
            (folder / name).resolve().unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)
        note_verified(task, listing, kept)
        return
    unverified = [name for name in names if cached_state(folder, name) == "unverified"]
    if unverified and not trusts_cache():
        raise _not_verified(task.goal, folder, unverified, why)


def _not_verified(goal: str, folder: Path, names: Collection[str], first: str) -> RunError:
    why = (
        f"{shortened(names)} in {folder} cannot be verified: the file is not a link to one named "
        "by its digest, as in a copied HF_HOME, and no digest is kept beside it"
    )
    return RunError(
        join_problems(
            f"Cannot {goal}: {first and first.rstrip('.') + '; '}{why}. Try:",
            [
                f"with a connection: {_verify(folder)}; it compares the files with the Hub and "
                "keeps their digests",
                f"{TRUST}=1 in the environment, to use the files as they are",
            ],
        )
    )


def _verify(folder: Path) -> str:
    """The command that compares a snapshot with the Hub."""
    origin = snapshot_origin(folder)
    return "the same command" if origin is None else f"`zoo pull {PREFIX}{origin}`"


def trusts_cache() -> bool:
    """Whether files of the cache may be used that cannot be verified."""
    return os.environ.get(TRUST, "").lower() in ("1", "true", "yes", "on")


def _known_commit(task: Task) -> str | None:
    """The commit that the revision names, as far as the cache knows."""
    commit = task.address.branch
    if not task.address.pinned:
        try:
            commit = (task.folder / "refs" / task.address.branch).read_text().strip()
        except (OSError, ValueError):
            return None
    return commit if COMMIT.fullmatch(commit) else None


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
    lock = task.folder.parent / ".locks" / task.folder.name / f"{listed.digest}.lock"
    with locked(lock) as free:
        for partial in blob.parent.glob(f"{listed.digest}.*incomplete") if free else ():
            partial.unlink(missing_ok=True)  # of a download that was killed
    if listed.size >= ANNOUNCED_FROM_BYTES and not blob.exists():
        info(f"Downloading {name} of {task.repo} ({listed.size / 1e6:.1f} MB).")
    call(
        task,
        timeout,
        lambda: hf_hub_download(
            task.repo,
            name,
            repo_type=task.kind,
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


def cached_state(
    folder: Path, name: str, *, keep: bool = False
) -> Literal["verified", "unverified", "damaged", "missing"]:
    """What is known of a file in a snapshot of the cache.

    It is compared with the digest that was kept when it was compared with the Hub. Without one, a
    link is compared with the digest that is the name of the file behind it, and a file in the only
    snapshot of its repository with the names of the files that the Hub's client stored. A damaged
    file is deleted, and missing then, unless `keep`.
    """
    path = folder / name
    if not path.is_file():
        return "missing"
    with explained(Task(f"read {path}", Address(str(snapshot_origin(folder)).partition("@")[0]))):
        blob, blobs = path.resolve(), folder.parent.parent / "blobs"
        named = blob.name if blob.name != name and DIGEST.fullmatch(blob.name) else None
        wanted = {digest for digest in (_kept_digests(folder).get(name), named) if digest}
        if not wanted:
            alone = sum(other.is_dir() for other in folder.parent.iterdir()) == 1
            stored = [b for b in blobs.glob("*") if b.is_file() and DIGEST.fullmatch(b.name)]
            size = path.stat().st_size
            like = [b.name for b in stored if b.stat().st_size == size] if alone else []
            return "verified" if any(holds(path, digest) for digest in like) else "unverified"
        if all(digest_of(path, digest) == digest for digest in wanted):
            return "verified"
        if keep:
            return "damaged"
        warn(f"The cached file {name} is damaged; deleted: {path}")
        path.unlink(missing_ok=True)
        if named is not None and not holds(blob, named):
            blob.unlink(missing_ok=True)
        return "missing"


def _kept_digests(folder: Path) -> dict[str, str]:
    """The digests of the files of a snapshot as the Hub listed them; empty where none are kept."""
    try:
        kept = read_json(_digests_file(folder), MAX_DIGESTS_BYTES)
    except InputError:
        return {}
    kept = kept if isinstance(kept, dict) else {}
    return {n: d for n, d in kept.items() if isinstance(d, str) and DIGEST.fullmatch(d)}


def _digests_file(folder: Path) -> Path:
    return folder.parent.parent / "zoo" / f"{folder.name}.json"


def note_verified(task: Task, listing: Listing, names: Collection[str]) -> None:
    """Keep what a revision named and the digests of its verified files, for work offline."""
    commit, folder = listing.commit, snapshot(task, listing.commit)
    with contextlib.suppress(RunError):  # the files can be used from a read-only cache too
        note, before = task.folder / "refs" / task.address.branch, _kept_digests(folder)
        if task.address.branch != commit and not (note.is_file() and note.read_text() == commit):
            write_text(note, commit)
        digests = before | {name: listing.files[name].digest for name in names}
        if digests != before:
            write_json(_digests_file(folder), digests)


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
