"""A model from the Hub into the Hub's cache: checked before, during and after the download."""

from __future__ import annotations

from pathlib import Path

from zoo.common.errors import InputError, join_problems, printable, shortened
from zoo.hub.config import MAX_CONFIG_BYTES, read_config
from zoo.hub.encoders import verify_safetensors
from zoo.hub.folder import CARD, CONFIG, WEIGHTS, check_shapes
from zoo.remote.address import Address, hub_timeout
from zoo.remote.client import Listing, Task
from zoo.remote.files import (
    download,
    holds,
    listing_or_cached,
    note_verified,
    read_shapes,
    snapshot,
)

WITHOUT_HUB = (
    "a local folder: give its path in place of hf-hub:ORG/REPO",
    "the cache of a machine that has a connection: copy its HF_HOME folder and point HF_HOME at "
    "the copy",
)
MAX_CARD_BYTES = 1_000_000


def pull_model(address: Address, registry: Path | None = None) -> Path:
    """Download a model into the cache and return its folder there, named by the commit.

    The revision is resolved to a commit once. The description is checked, and names and shapes of
    the weights are compared with it, before the weights are downloaded; their SHA-256 after. A full
    commit that is cached needs no request; where the Hub cannot be asked, what is cached is used
    with a warning. `registry` is an overlay that may name the classes of a repository of SMP's.
    Raises InputError for a model that cannot be used, RunError where the Hub fails.
    """
    task, timeout = Task(f"pull {address.repo}", address, WITHOUT_HUB), hub_timeout()
    listing = listing_or_cached(task, (CONFIG, WEIGHTS), timeout)
    if isinstance(listing, Path):
        return listing
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in listing.files]:
        held = sorted(map(printable, listing.files))
        has = f"it holds {shortened(held, 5)}" if held else "it is empty"
        raise InputError(
            f"{task.repo} is not a model: it has no {' and no '.join(missing)} ({has}). Pickles "
            "(.bin, .pth) can run code and are never loaded; `zoo import` converts a checkpoint "
            "on your disk."
        )
    note_verified(task, listing, _download(task, listing, timeout, registry))
    return snapshot(task, listing.commit)


def _download(task: Task, listing: Listing, timeout: float, registry: Path | None) -> list[str]:
    """Download and check the files of a model; returns their names."""
    described = read_config(download(task, listing, CONFIG, timeout, MAX_CONFIG_BYTES), registry)
    cached = snapshot(task, listing.commit) / WEIGHTS
    is_cached = holds(cached, listing.files[WEIGHTS].digest)
    if is_cached:
        shapes = verify_safetensors(cached)
    else:
        shapes = read_shapes(task, listing, WEIGHTS, timeout)
    try:
        check_shapes(described, shapes)
    except InputError as error:
        header, *problems = str(error).splitlines()
        text = join_problems("", [line.strip(" -") for line in problems])
        raise InputError(f"{task.repo} at {listing.commit[:12]}: {header}{text}") from error
    card = listing.files.get(CARD)
    with_card = card is not None and card.size <= MAX_CARD_BYTES
    if with_card:
        download(task, listing, CARD, timeout)
    if not is_cached:
        verify_safetensors(download(task, listing, WEIGHTS, timeout))
    return [CONFIG, WEIGHTS, CARD] if with_card else [CONFIG, WEIGHTS]
