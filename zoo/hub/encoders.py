"""Pretrained encoder weights from the Hugging Face Hub: safetensors only, never a pickle."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.common.console import info
from zoo.common.errors import InputError, ZooError, join_problems, printable, shortened
from zoo.common.files import sha256
from zoo.remote.address import Address, hub_timeout, problems
from zoo.remote.client import Listing, Task, list_files
from zoo.remote.files import download, listing_or_cached, note_verified, snapshot

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 10_000_000
"""timm writes the names of up to 22,000 classes into config.json."""

WITHOUT_HUB = (
    "no download: encoder_weights=None, on the command line --encoder-weights none (random "
    "weights: expect far lower accuracy)",
    'a local file: encoder_weights="FILE.safetensors", --encoder-weights FILE.safetensors',
    "the cache of a machine that has a connection: copy its HF_HOME folder and point HF_HOME at "
    "the copy",
    "an overlay registry (ZOO_REGISTRY) whose encoder rule names a local weights file",
)


@dataclass(frozen=True)
class EncoderFile:
    """A verified safetensors file: its path, and the repository and commit it came from.

    `config` is the repository's config.json where it was asked for.
    """

    path: Path
    repo: str
    revision: str
    sha256: str
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class TimmWeights:
    """Weights of an encoder with what their config.json says; None where it does not say."""

    file: EncoderFile
    mean: list[float] | None
    std: list[float] | None
    license: str | None


def fetch_encoder(
    encoder: str,
    tag: str,
    hub_id: str,
    *,
    revision: str | None = None,
    timeout: float | None = None,
    filename: str = WEIGHTS_FILE,
    with_config: bool = False,
) -> EncoderFile:
    """Fetch the pretrained weights of a timm encoder, or take them from the cache.

    `revision` is a commit, a branch or a tag, by default `main`; a full commit that is cached needs
    no request. Where the Hub cannot be asked, a cached file is used with a warning. `timeout` is in
    seconds: the longest silence of the server that is waited for, not the time of the download; by
    default ZOO_HUB_TIMEOUT or 10. `with_config` reads the repository's config.json too.

    Raises InputError where the repository, its revision or its safetensors file is missing or not
    open to the user, RunError where the Hub fails or sends other bytes than it lists.
    """
    name = f"{encoder}.{tag}" if tag else encoder
    task = _task(name, Address(hub_id, revision))
    _check(task, name, filename)
    timeout = hub_timeout() if timeout is None else timeout
    names = [CONFIG_FILE, filename] if with_config else [filename]
    folder = listing_or_cached(task, names, timeout)
    if isinstance(folder, Listing):
        listing = folder
        _check_listing(task, listing, name, names)
        for file in names:
            limit = MAX_CONFIG_BYTES if file == CONFIG_FILE else None
            download(task, listing, file, timeout, limit)
        note_verified(task, listing, names)
        folder = snapshot(task, listing.commit)
    path, config = folder / filename, None
    verify_safetensors(path)
    if with_config:
        try:
            config = json.loads((folder / CONFIG_FILE).read_bytes())
        except ValueError:
            config = None
    config = config if isinstance(config, dict) else None
    return EncoderFile(path, hub_id, folder.name, sha256(path), config)


def fetch_timm(encoder: str, address: Address) -> TimmWeights:
    """The weights of `encoder` (a timm architecture) from any repository that timm pushed.

    Raises InputError where the repository holds another architecture or says nothing of it, and
    whatever `fetch_encoder` raises.
    """
    file = fetch_encoder(encoder, "", address.repo, revision=address.revision, with_config=True)
    config = file.config or {}
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise InputError(
            f"{address.repo} is not a timm repository: its config.json names no architecture."
        )
    if architecture.partition(".")[0] != encoder:
        raise InputError(
            f"{address.repo} holds weights of {architecture!r}, not of {encoder}. Choose a model "
            f"name with that encoder, or another repository."
        )
    stated = config.get("pretrained_cfg")
    stated = stated if isinstance(stated, dict) else {}
    mean, std = (_three(stated.get(key)) for key in ("mean", "std"))
    if mean is None or std is None:
        info(f"{address.repo} states no mean and std; using those of timm's {encoder}.")
        mean = std = None
    license = stated.get("license")
    return TimmWeights(file, mean, std, license if isinstance(license, str) else "unknown")


def _three(values: Any) -> list[float] | None:
    """Three numbers in (0, 1], or None."""
    if not isinstance(values, list) or len(values) != 3:
        return None
    if not all(isinstance(value, int | float) and 0 < value <= 1 for value in values):
        return None
    return [float(value) for value in values]


def hub_answers(hub_id: str, timeout: float = 3.0) -> bool:
    """Whether the Hub answers within `timeout` seconds and `hub_id` has a safetensors file."""
    task = _task(hub_id, Address(hub_id))
    try:
        _check(task, hub_id, WEIGHTS_FILE)
        _check_listing(task, list_files(task, timeout), hub_id, [WEIGHTS_FILE])
    except ZooError:
        return False
    return True


def _task(name: str, address: Address) -> Task:
    return Task(f"fetch the weights of encoder {name} from {address.repo}", address, WITHOUT_HUB)


def _check(task: Task, name: str, filename: str) -> None:
    """Refuse what must not reach a request: no repository, a pickle, a broken endpoint or token."""
    if not task.repo:
        raise InputError(
            f"timm names no repository on the Hub for the weights of encoder {name}. Use "
            'another tag of it, encoder_weights="FILE.safetensors" or encoder_weights=None.'
        )
    found = list(problems(task.address))
    if not filename.endswith(".safetensors") or "/" in filename or "\\" in filename:
        found.append(f"the file must be a plain *.safetensors name, not {filename!r}")
    if found:
        raise InputError(join_problems(f"Cannot fetch the weights of encoder {name}:", found))


def _check_listing(task: Task, listing: Listing, name: str, files: list[str]) -> None:
    missing = [file for file in files if file not in listing.files]
    if missing:
        held = sorted(map(printable, listing.files))
        has = f"it holds {shortened(held, 5)}" if held else "it is empty"
        raise InputError(
            f"{task.repo} has no {missing[-1]} ({has}). Pickles (.bin, .pth) can run code and "
            f"are never loaded. Choose another tag of encoder {name.partition('.')[0]}, or "
            "convert the weights with safetensors.torch.save_file and give "
            'encoder_weights="FILE.safetensors".'
        )


def verify_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Check the header of a safetensors file against its length; returns the shapes of its tensors.

    Raises InputError where the file is missing, truncated, empty, a pickle or anything else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        problem = None if shapes else "it holds no tensors"
    except (SafetensorError, OSError) as error:
        problem = _file_problem(path) or f"its header cannot be read ({error})"
    if problem is not None:
        raise InputError(f"{path} is not a usable safetensors file: {problem}.")
    return shapes


def _file_problem(path: Path) -> str | None:
    """What a file that safetensors refuses is instead, where that can be told."""
    if not path.exists():
        return "there is no such file"
    if not path.is_file():
        return "it is not a file"
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not head:
        return "it is empty"
    if head.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", head):
        return (
            "it is a pickle as torch.save writes it, which can run code when it is loaded; load it "
            "with torch.load(..., weights_only=True) and save its tensors with "
            "safetensors.torch.save_file"
        )
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights; run `git lfs pull` where it came from"
    return None
