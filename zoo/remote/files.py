"""Files from the Hub into the Hub's own cache: verified, bounded in time.

A listed file is brought by one request (and the CDN's redirect). Its bytes are compared with the
listed digest before they appear in the cache, where timm and every other client of the Hub find
them too. The client's own `hf_hub_download` is not used: it retries for minutes where a server is
silent or failing, and it keeps bytes that are wrong.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from zoo.common.console import info, progress_bar
from zoo.common.errors import InputError, RunError
from zoo.remote.cache import digest_of, holds, link, snapshot
from zoo.remote.client import Task, explained, may_pass
from zoo.remote.listing import Listed, Listing

RETRY_PAUSE_S = 1.0
CHUNK_BYTES = 1 << 18
START_BYTES = 1 << 18
MAX_HEADER_BYTES = 100_000_000
SAID_FROM_BYTES = 100_000


def store(
    task: Task, listing: Listing, name: str, timeout: float, limit: int | None = None
) -> Path:
    """Bring a listed file into the cache if it is not there.

    Raises InputError, before any request, for a file of more than `limit` bytes, and what a failed
    download raises.
    """
    listed = listing.files[name]
    if limit is not None and listed.size > limit:
        raise InputError(f"{name} of {task.repo} is larger than {limit} bytes; refused.")
    pointer = snapshot(task, listing.commit) / name
    blob = task.folder / "blobs" / listed.digest
    with explained(task):
        if not holds(pointer, listed.digest):
            if not holds(blob, listed.digest):
                _download(task, listing.commit, listed, blob, timeout)
            link(pointer, blob)
    return pointer


def read_shapes(
    task: Task, listing: Listing, name: str, timeout: float
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a listed safetensors file, from its first bytes alone.

    Raises RunError where what came is no safetensors header.
    """
    listed = listing.files[name]
    blob = task.folder / "blobs" / listed.digest
    with explained(task):
        cached = holds(blob, listed.digest)

        def first(count: int) -> bytes:
            if cached:
                with blob.open("rb") as stream:
                    return stream.read(count)
            return _start(task, listing.commit, listed, count, timeout)

        content = first(min(START_BYTES, listed.size))
        needed = 8 + int.from_bytes(content[:8], "little")
        if len(content) < needed <= min(MAX_HEADER_BYTES, listed.size):
            content = first(needed)
    try:
        return _shapes(content[8:needed])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"the start of {name} is not the header of a safetensors file"
        step = "run the command again; if it stays so, the file in the repository is damaged"
        raise RunError(task.failure(reason, step)) from error


def _shapes(header: bytes) -> dict[str, tuple[int, ...]]:
    entries = json.loads(header)
    shapes = {key: entries[key]["shape"] for key in entries if key != "__metadata__"}
    sides = [side for shape in shapes.values() for side in shape]
    if not shapes or not all(type(side) is int and 0 <= side < 2**40 for side in sides):
        raise ValueError("a shape that no tensor has")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _start(task: Task, commit: str, listed: Listed, count: int, timeout: float) -> bytes:
    """The first `count` bytes of a file; one failure that may pass is forgiven."""
    url = hf_hub_url(task.repo, listed.name, revision=commit)
    began = time.monotonic()
    try:
        return _first_bytes(url, count, timeout)
    except HubTransportError as error:
        if not may_pass(error) or time.monotonic() - began >= timeout:
            raise
    time.sleep(RETRY_PAUSE_S)
    return _first_bytes(url, count, timeout)


def _first_bytes(url: str, count: int, timeout: float) -> bytes:
    headers = _headers() | {"Range": f"bytes=0-{count - 1}"}
    content = b""
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(CHUNK_BYTES):
            content += chunk
            if len(content) >= count:
                break
    return content[:count]


def _download(task: Task, commit: str, listed: Listed, blob: Path, timeout: float) -> None:
    """Bring the file to `blob`, through a temporary file that never outlives the call."""
    if listed.size >= SAID_FROM_BYTES:
        info(f"Fetching {listed.name} of {task.repo} ({listed.size / 1e6:.1f} MB).")
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.{uuid.uuid4().hex[:8]}.incomplete")
    url = hf_hub_url(task.repo, listed.name, revision=commit)
    try:
        _transfer(url, part, listed.size, timeout)
        size, digest = part.stat().st_size, digest_of(part, listed.digest)
        if digest != listed.digest:
            reason = (
                f"the file that came ({size} bytes, digest {digest[:12]}...) is not the one that "
                f"the Hub lists ({listed.size} bytes, {listed.digest[:12]}...); it was deleted"
            )
            raise RunError(task.failure(reason, "run the command again"))
        part.replace(blob)
    finally:
        part.unlink(missing_ok=True)


def _transfer(url: str, part: Path, size: int, timeout: float) -> None:
    """Stream `url` into `part`, resuming where a connection broke.

    A try that brought bytes is followed by another. One that brought none is repeated once, and
    not at all where the Hub refused or stayed silent for `timeout` seconds.
    """
    spare = 1
    with progress_bar() as bar:
        task = bar.add_task("MB", total=size / 1e6)
        while True:
            before, began = _length(part), time.monotonic()
            try:
                for length in _stream(url, part, size, timeout):
                    bar.update(task, completed=length / 1e6)
                return
            except HubTransportError as error:
                if _length(part) > before:
                    spare = 1
                elif spare and may_pass(error) and time.monotonic() - began < timeout:
                    spare = 0
                else:
                    raise
            time.sleep(RETRY_PAUSE_S)


def _stream(url: str, part: Path, size: int, timeout: float) -> Iterator[int]:
    """Append what is missing of `part`; yields its length in bytes after every chunk."""
    start = _length(part)
    headers = _headers() | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        length = start if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
                length += len(chunk)
                yield length
                if length > size:
                    return


def _headers() -> dict[str, str]:
    return {**build_hf_headers(library_name="zoo"), "Accept-Encoding": "identity"}


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
