"""What runs a pushed model: a page as a Space, and a handler for inference endpoints.

Both are a few lines that import zoo. Their first line holds a digest of the others, so that a file
of somebody else, or one that a person changed, is never replaced.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata

from huggingface_hub import constants

from zoo.common.console import info
from zoo.common.errors import InputError, printable
from zoo.common.html import render
from zoo.hub.card import BEGIN, END, escape, fields_of, merged, read_card, with_fields
from zoo.hub.pull import MAX_CARD_BYTES
from zoo.models.spec import ModelSpec
from zoo.remote import upload
from zoo.remote.address import Address, problems
from zoo.remote.client import Listing, NoRepositoryError, Task, list_files, overtaken
from zoo.remote.files import download
from zoo.runtime.environment import versions

CARD, APP, HANDLER, REQUIREMENTS = "README.md", "app.py", "handler.py", "requirements.txt"
STAMP = re.compile(rb"# Written by zoo, ([0-9a-f]{64}\b)[^\n]*\n")
MAX_BYTES = 100_000


def handler_files() -> dict[str, bytes]:
    """What an inference endpoint needs in the repository of a model."""
    text = "from zoo.demo.endpoint import EndpointHandler\n\n__all__ = ['EndpointHandler']\n"
    return {
        HANDLER: _stamped(text),
        REQUIREMENTS: _stamped(f"segmentation-zoo=={versions()['zoo']}\n"),
    }


def check_ours(task: Task, listing: Listing, names: Collection[str], timeout: float) -> None:
    """Raise InputError where one of these files is in the repository and zoo did not write it."""
    for name in names:
        if name not in listing.files:
            continue
        content = download(task, listing, name, timeout, MAX_BYTES).read_bytes()
        found = STAMP.match(content)
        if found is None or found[1].decode() != _digest(content[found.end() :]):
            raise InputError(
                f"Cannot {task.goal}: zoo did not write the {name} that is there, or it was "
                "changed since. Delete it there, or choose another repository."
            )


def _stamped(text: str) -> bytes:
    first = f"# Written by zoo, {_digest(text.encode())}; a changed file is not replaced.\n"
    return (first + text).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Space:
    """A Space that may be written to: what is there (None: it is still to be created)."""

    task: Task
    listing: Listing | None

    @property
    def url(self) -> str:
        """Its address in a browser."""
        return f"{constants.ENDPOINT}/spaces/{self.task.repo}"


def find_space(repo: str, timeout: float) -> Space:
    """The Space `repo`, which need not be there.

    Raises InputError where it holds a page that zoo did not write, and where gradio, whose version
    the Space is to have, is not installed.
    """
    task = Task(f"push the page to the Space {repo}", Address(repo), kind="space")
    if found := list(problems(task.address)):
        raise InputError(f"Cannot {task.goal}: {found[0]}.")
    _gradio()
    try:
        listing = list_files(task, timeout)
    except NoRepositoryError:
        return Space(task, None)
    check_ours(task, listing, (APP, REQUIREMENTS), timeout)
    fields = fields_of(_card(task, listing, timeout) or "")
    for key, ours in (("sdk", "gradio"), ("app_file", APP)):
        if fields.get(key, ours) != ours:
            raise InputError(
                f"Cannot {task.goal}: its README.md says `{key}: {printable(fields[key])}`, so "
                "zoo did not make it. Choose another --space-repo."
            )
    return Space(task, listing)


def push_space(
    space: Space, spec: ModelSpec, model: Address, *, private: bool, dry_run: bool, timeout: float
) -> tuple[dict[str, bytes], list[str]]:
    """Write the page of `model` to the Space, in one commit; returns its files and the changed.

    The page is that of the model's commit. What a person wrote into README.md stays. Raises
    RunError where the Hub fails.
    """
    task, listing = space.task, space.listing
    if listing is None and not dry_run:
        upload.create_repository(task, private, timeout)
        listing = list_files(task, timeout)
        if {APP, REQUIREMENTS} & listing.files.keys():
            raise overtaken(task)
    existing = None if listing is None else _card(task, listing, timeout)
    files = {
        CARD: _space_card(spec, model, existing).encode(),
        APP: _stamped(f'from zoo.demo.page import serve\n\nserve("{model}")\n'),
        REQUIREMENTS: _stamped(f"segmentation-zoo[demo]=={versions()['zoo']}\n"),
    }
    changed = upload.changed(files, listing)
    if dry_run or listing is None:
        return files, changed
    made = upload.Commit(listing.commit)
    if changed:
        sent = {name: files[name] for name in changed}
        change = upload.Change(sent, listing.commit, "main", "Push the page of a model with zoo")
        made = upload.commit(task, change, timeout)
    else:
        info(f"The Space {task.repo} shows this model already; no commit was made.")
    upload.check_arrived(task, files, made, timeout)
    return files, changed


def _card(task: Task, listing: Listing, timeout: float) -> str | None:
    if CARD not in listing.files:
        return None
    return read_card(download(task, listing, CARD, timeout, MAX_CARD_BYTES), task.repo)


def _space_card(spec: ModelSpec, model: Address, existing: str | None) -> str:
    body = render("hub/space.md", md=escape, spec=spec, model=model)
    fields = {
        "title": spec.name,
        "models": [model.repo],
        "tags": ["semantic-segmentation", "segmentation-zoo"],
    }
    text = merged(with_fields(f"{BEGIN}\n\n{body.strip()}\n\n{END}\n", fields), existing)
    needed = {
        "sdk": "gradio",
        "sdk_version": _gradio(),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": APP,
    }
    return with_fields(text, needed)


def _gradio() -> str:
    try:
        return metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise InputError(
            "--space needs the package gradio, which is not installed. "
            "Install it with `pip install 'segmentation-zoo[demo]'`."
        ) from error
