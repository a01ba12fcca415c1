"""A model from the Hub into the Hub's cache: checked before, during and after the download."""

from __future__ import annotations

from pathlib import Path

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, ZooError, join_problems, printable, shortened
from zoo.hub.config import MAX_CONFIG_BYTES, read_config
from zoo.hub.encoders import verify_safetensors
from zoo.hub.folder import CARD, CONFIG, WEIGHTS, check_shapes
from zoo.remote.address import Address, hub_timeout
from zoo.remote.client import Listing, Task, host, list_files, reason
from zoo.remote.files import (
    cached_commit,
    cached_file,
    download,
    note_revision,
    read_shapes,
    snapshot,
)

WAYS = (
    "from a folder at hand: give its path in place of hf-hub:ORG/REPO",
    "from the cache of a machine that has a connection: copy its HF_HOME folder and point HF_HOME "
    "at the copy",
)
MAX_CARD_BYTES = 1_000_000


def pull_model(address: Address, registry: Path | None = None) -> Path:
    """Bring a model into the cache and return its folder there, named by the commit.

    The revision is resolved to a commit once. The description is checked, and names and shapes of
    the weights are compared with it, before the weights are downloaded; their SHA-256 after. A full
    commit that is cached needs no request; where the Hub cannot be asked, what is cached is used
    with a remark. `registry` is an overlay that may name the classes of a repository of SMP's.
    Raises InputError for a model that cannot be used, RunError where the Hub fails.
    """
    task = Task(f"pull {address.repo}", address, WAYS)
    timeout = hub_timeout()
    if address.pinned and (cached := _cached(task)):
        return cached
    try:
        listing = list_files(task, timeout)
    except ZooError as error:
        cached = _cached(task)
        if cached is None:
            raise
        info(f"{reason(error)} The cached model of revision {cached.name[:12]} is used.")
        return cached
    folder = _fetch(task, listing, timeout, registry)
    note_revision(task, listing.commit)
    return folder


def _cached(task: Task) -> Path | None:
    commit = cached_commit(task)
    if commit is None or not all(cached_file(task, name, commit) for name in (CONFIG, WEIGHTS)):
        return None
    return snapshot(task, commit)


def _fetch(task: Task, listing: Listing, timeout: float, registry: Path | None) -> Path:
    _check_listing(task, listing)
    described = read_config(download(task, listing, CONFIG, timeout, MAX_CONFIG_BYTES), registry)
    cached = cached_file(task, WEIGHTS, listing.commit)
    try:
        if cached is None:
            check_shapes(described, read_shapes(task, listing, WEIGHTS, timeout))
        else:
            check_shapes(described, verify_safetensors(cached))
    except InputError as error:
        header, *problems = str(error).splitlines()
        text = join_problems("", [line.strip(" -") for line in problems])
        raise InputError(f"{task.repo} at {listing.commit[:12]}: {header}{text}") from error
    card = listing.files.get(CARD)
    if card is not None and card.size <= MAX_CARD_BYTES:
        download(task, listing, CARD, timeout)
    if cached is None:
        verify_safetensors(download(task, listing, WEIGHTS, timeout))
    return snapshot(task, listing.commit)


def _check_listing(task: Task, listing: Listing) -> None:
    held = sorted(map(printable, listing.files))
    missing = [name for name in (CONFIG, WEIGHTS) if name not in listing.files]
    if missing:
        has = f"it holds {shortened(held, 5)}" if held else "it is empty"
        raise InputError(
            f"{task.repo} is not a model: it has no {' and no '.join(missing)} ({has}). Pickles "
            "(.bin, .pth) can run code and are never loaded; `zoo import` converts a checkpoint "
            "on your disk."
        )
    if len(listing.files[WEIGHTS].digest) != 64:
        text = f"{host()} lists no SHA-256 of {WEIGHTS}, so that no download can be verified"
        raise RunError(task.failure(text))
