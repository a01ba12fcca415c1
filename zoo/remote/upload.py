"""Writing to a repository: create it, commit once, check what arrived."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]

from zoo.common.errors import RunError
from zoo.remote import client
from zoo.remote.address import Address
from zoo.remote.client import Listing, Task, UnreadableAnswerError, list_files
from zoo.remote.files import digest_of

WRITE_PATIENCE = 2.5
"""A write may take this many times the silence that a read may take."""

LAST_LOOK = 0.5
"""The same for the look at the branch after a write that ended in silence."""

Content = Path | bytes


@dataclass(frozen=True)
class Commit:
    """What was written: the commit, and the pull request's page where one was opened."""

    revision: str
    pull_request: str | None = None


@dataclass(frozen=True)
class Change:
    """Files by name to write on top of `head`, which `branch` must still name then."""

    files: Mapping[str, Content]
    head: str
    branch: str
    message: str
    pull_request: bool = False


def create_repository(task: Task, private: bool, timeout: float) -> None:
    """Create the repository, a Space for gradio; one that exists is left as it is."""
    client.call(
        task,
        WRITE_PATIENCE * timeout,
        lambda: client.api().create_repo(
            task.repo,
            private=private,
            exist_ok=True,
            repo_type=task.kind,
            space_sdk="gradio" if task.kind == "space" else None,
        ),
    )


def create_branch(task: Task, branch: str, timeout: float) -> None:
    """Create a branch on top of main."""
    client.call(
        task,
        WRITE_PATIENCE * timeout,
        lambda: client.api().create_branch(task.repo, branch=branch, exist_ok=True),
    )


def create_tag(task: Task, tag: str, commit: str, timeout: float) -> None:
    """Name a commit."""
    client.call(
        task,
        WRITE_PATIENCE * timeout,
        lambda: client.api().create_tag(task.repo, tag=tag, revision=commit),
    )


def commit(task: Task, change: Change, timeout: float) -> Commit:
    """Write all files in one commit.

    A failed answer may belong to a commit that was made: the branch is looked at before the commit
    is tried a second time, and refused where somebody else was faster. Raises InputError or
    RunError; nothing is changed then.
    """
    with client.explained(task):
        began = time.monotonic()
        try:
            return _commit(task, change, timeout)
        except (HubTransportError, UnreadableAnswerError) as error:
            passes = isinstance(error, UnreadableAnswerError) or client.may_pass(error)
            if change.pull_request or not passes:
                raise
            silent = time.monotonic() - began >= WRITE_PATIENCE * timeout
            branch = replace(task, address=Address(task.repo, change.branch))
            now = list_files(branch, LAST_LOOK * timeout if silent else timeout)
            if now.commit != change.head:
                if changed(change.files, now):
                    raise client.overtaken(task) from error
                return Commit(now.commit)  # made after all; only its answer was lost
            if silent:
                raise
        time.sleep(client.RETRY_PAUSE_S)
        return _commit(task, change, timeout)


def _commit(task: Task, change: Change, timeout: float) -> Commit:
    operations = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in change.files.items()
    ]
    with client.bounded(task, WRITE_PATIENCE * timeout):
        made = client.api().create_commit(
            task.repo,
            operations,
            repo_type=task.kind,
            commit_message=change.message,
            revision=None if change.pull_request else change.branch,
            create_pr=change.pull_request,
            parent_commit=change.head,
        )
        return Commit(made.oid, made.pr_url)


def check_arrived(task: Task, files: Mapping[str, Content], made: Commit, timeout: float) -> None:
    """Raise RunError unless the Hub lists exactly these files at the commit."""
    listing = list_files(replace(task, address=Address(task.repo, made.revision)), timeout)
    if wrong := changed(files, listing):
        reason = f"{client.host()} holds other bytes than were sent: {', '.join(wrong)}"
        raise RunError(task.failure(reason, "run the command again"))


def changed(files: Mapping[str, Content], listing: Listing | None) -> list[str]:
    """The names of the files that the listing does not hold with the same content."""
    held = {} if listing is None else listing.files
    return [
        name
        for name, content in files.items()
        if name not in held or held[name].digest != digest_of(content, held[name].digest)
    ]
