"""Pretrained encoder weights from the Hugging Face Hub: safetensors only, never a pickle."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from zoo.console import remark
from zoo.errors import InputError, ZooError, join_problems
from zoo.hub.download import COMMIT, EncoderFile, Wanted, ask, cached_file, store

WEIGHTS_FILE = "model.safetensors"


def fetch_encoder(
    encoder: str,
    tag: str,
    hub_id: str,
    *,
    revision: str | None = None,
    timeout: float = 10.0,
    filename: str = WEIGHTS_FILE,
) -> EncoderFile:
    """Fetch the pretrained weights of a timm encoder, or take them from the cache.

    `revision` is a commit, a branch or a tag, by default `main`; a full commit that is cached needs
    no request. Where the Hub cannot be asked, a cached file is used with a remark. `timeout` is in
    seconds: the longest silence of the server that is waited for, not the time of the download.
    Processes may fetch the same file at once: each writes its own temporary file.

    Raises InputError where the repository, its revision or its safetensors file is missing or not
    open to the user, RunError where the Hub fails or sends other bytes than it lists.
    """
    wanted = Wanted(f"{encoder}.{tag}" if tag else encoder, hub_id, revision, filename)
    _check(wanted)
    found = _fetch(wanted, timeout)
    verify_safetensors(found.path)
    return found


def _fetch(wanted: Wanted, timeout: float) -> EncoderFile:
    pinned = wanted.revision is not None and COMMIT.fullmatch(wanted.revision)
    if pinned and (cached := cached_file(wanted)):
        return cached
    try:
        listed = ask(wanted, timeout)
    except ZooError as error:
        cached = cached_file(wanted)
        if cached is None:
            raise
        reason = str(error).partition(" Ways on:")[0]
        remark(f"{reason} The cached file of revision {cached.revision[:12]} is used.")
        return cached
    return store(wanted, listed, timeout)


def hub_answers(hub_id: str, timeout: float = 3.0) -> bool:
    """Whether the Hub answers within `timeout` seconds and `hub_id` has a safetensors file."""
    wanted = Wanted(hub_id, hub_id, None, WEIGHTS_FILE)
    try:
        _check(wanted)
        ask(wanted, timeout)
    except ZooError:
        return False
    return True


def verify_safetensors(path: Path) -> None:
    """Check the header of a safetensors file against its length; reads no tensor.

    Raises InputError where the file is missing, truncated, empty, a pickle or anything else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            problem = None if list(file.keys()) else "it holds no tensors"
    except (SafetensorError, OSError) as error:
        problem = _file_problem(path) or f"its header cannot be read ({error})"
    if problem is not None:
        raise InputError(f"{path} is not a usable safetensors file: {problem}.")


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


def _check(wanted: Wanted) -> None:
    """Refuse what must not reach a request: no repository, a pickle, a broken endpoint or token."""
    if not wanted.repo:
        raise InputError(
            f"timm names no repository on the Hub for the weights of encoder {wanted.name}. Use "
            'another tag of it, encoder_weights="FILE.safetensors" or encoder_weights=None.'
        )
    problems = []
    try:
        validate_repo_id(wanted.repo)
    except HFValidationError:
        problems.append(f"{wanted.repo!r} is not a repository id like org/name")
    name = wanted.filename
    if not name.endswith(".safetensors") or "/" in name or "\\" in name:
        problems.append(f"the file has to be a plain *.safetensors name, not {name!r}")
    if ".." in wanted.branch or wanted.branch.startswith("/"):
        problems.append(f"{wanted.branch!r} is no commit, branch or tag")
    if not _is_web_address(constants.ENDPOINT):
        problems.append("HF_ENDPOINT has to look like https://huggingface.co")
    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        problems.append("the Hub token (HF_TOKEN) holds characters that no token has; set it anew")
    if problems:
        raise InputError(
            join_problems(f"Cannot fetch the weights of encoder {wanted.name}:", problems)
        )


def _is_web_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
