"""Where something lies on the Hugging Face Hub: `hf-hub:ORG/REPO[@REVISION]`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zoo.common.errors import InputError, join_problems

PREFIX = "hf-hub:"
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Address:
    """A repository and a commit, branch or tag of it; None means the branch main."""

    repo: str
    revision: str | None = None

    @property
    def branch(self) -> str:
        """The revision by name."""
        return self.revision or MAIN

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit, which can never mean anything else."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: object) -> bool:
    """Whether `text` is an address on the Hub."""
    return str(text).startswith(PREFIX)


def parse_address(text: str) -> Address:
    """The address in `hf-hub:ORG/REPO[@REVISION]`. Raises InputError where it is malformed."""
    repo, at, revision = text.removeprefix(PREFIX).partition("@")
    address = Address(repo, revision if at else None)
    if found := list(problems(address)):
        example = "hf-hub:org/model or hf-hub:org/model@v1"
        raise InputError(join_problems(f"Invalid address {text!r}, write {example}:", found))
    return address


def snapshot_origin(folder: Path) -> str | None:
    """`org/repo@commit` where `folder` is a snapshot in a Hub cache, else None."""
    folder = folder.resolve()
    kind, _, repo = folder.parent.parent.name.partition("--")
    is_snapshot = folder.parent.name == "snapshots" and kind == "models"
    if not is_snapshot or not COMMIT.fullmatch(folder.name):
        return None
    return f"{repo.replace('--', '/', 1)}@{folder.name}"


def problems(address: Address) -> Iterator[str]:
    """What is wrong with `address`, and with the endpoint and the token in the environment."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(address.repo)
        known = "/" in address.repo
    except HFValidationError:
        known = False
    if not known:
        yield f"{address.repo!r} is not a repository id like org/name"
    revision = address.revision
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        yield f"{revision!r} is not a commit, branch or tag"
    if not _is_web_address(constants.ENDPOINT):
        yield "HF_ENDPOINT must look like https://huggingface.co"
    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        yield "the Hub token (HF_TOKEN) contains characters that no token has; set it again"


def hub_timeout() -> float:
    """The longest silence of the Hub that is waited for, in seconds; ZOO_HUB_TIMEOUT sets it."""
    given = os.environ.get("ZOO_HUB_TIMEOUT")
    if not given:
        return TIMEOUT_S
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise InputError(f"ZOO_HUB_TIMEOUT must be seconds above 0 and up to 3600, not {given!r}.")
    return seconds


def _is_web_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
