"""Writing to a repository: create it, commit once, look at what arrived."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]

from zoo.common.errors import RunError, ZooError, printable
from zoo.common.files import sha256
from zoo.remote.address import Address
from zoo.remote.cache import git_id
from zoo.remote.client import Task, explained, host, may_pass, no_hub
from zoo.remote.listing import Listing, ask
from zoo.remote.session import bounded

RETRY_PAUSE_S = 1.0
PATIENCE = 2.5
"""A write may take this many times the silence that a read may take."""

LAST_LOOK = 0.5
"""The same for the look at the branch after a write that ended in silence."""

Content = Path | bytes


class _UnreadableError(RunError):
    """An answer that no Hub gives; the request may have been carried out all the same."""


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
    """Create the repository; one that exists is left as it is."""
    _twice(task, timeout, lambda: _api().create_repo(task.repo, private=private, exist_ok=True))


def create_branch(task: Task, branch: str, timeout: float) -> None:
    """Create a branch on top of main."""
    _twice(task, timeout, lambda: _api().create_branch(task.repo, branch=branch, exist_ok=True))


def create_tag(task: Task, tag: str, commit: str, timeout: float) -> None:
    """Name a commit."""
    _twice(task, timeout, lambda: _api().create_tag(task.repo, tag=tag, revision=commit))


def commit(task: Task, change: Change, timeout: float) -> Commit:
    """Write all files in one commit.

    A failed answer may belong to a commit that was made: the branch is looked at before the commit
    is tried a second time, and refused where somebody else was faster. Raises InputError or
    RunError; nothing is changed then.
    """
    with explained(task):
        began = time.monotonic()
        try:
            return _commit(task, change, timeout)
        except (HubTransportError, _UnreadableError) as error:
            passes = isinstance(error, _UnreadableError) or may_pass(error)
            if change.pull_request or not passes:
                raise
            silent = time.monotonic() - began >= PATIENCE * timeout
            branch = replace(task, address=Address(task.repo, change.branch))
            now = ask(branch, LAST_LOOK * timeout if silent else timeout)
            if now.commit != change.head:
                return _lost_answer(task, change, now)
            if silent:
                raise
        time.sleep(RETRY_PAUSE_S)
        return _commit(task, change, timeout)


def check_arrived(task: Task, files: Mapping[str, Content], made: Commit, timeout: float) -> None:
    """Raise RunError unless the Hub lists exactly these files at the commit."""
    listing = ask(replace(task, address=Address(task.repo, made.revision)), timeout)
    wrong = changed(files, listing)
    if wrong:
        reason = f"{host()} holds other bytes than were sent: {', '.join(wrong)}"
        raise RunError(task.failure(reason, "run the command again"))


def changed(files: Mapping[str, Content], listing: Listing | None) -> list[str]:
    """The names of the files that the listing does not hold as they are."""
    if listing is None:
        return list(files)
    held = listing.files
    return [
        name
        for name, content in files.items()
        if name not in held or held[name].digest != digest(content, held[name].digest)
    ]


def digest(content: Content, like: str) -> str:
    """The digest of a file or of bytes, of the kind of `like`."""
    if isinstance(content, Path) and len(like) == 64:
        return sha256(content)
    held = content.read_bytes() if isinstance(content, Path) else content
    if len(like) == 40:
        return git_id(held)
    return hashlib.sha256(held).hexdigest()


def _api() -> HfApi:
    return HfApi(library_name="zoo")


def _commit(task: Task, change: Change, timeout: float) -> Commit:
    operations = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in change.files.items()
    ]
    with _answers(task), bounded(task, PATIENCE * timeout):
        made = _api().create_commit(
            task.repo,
            operations,
            commit_message=change.message,
            revision=None if change.pull_request else change.branch,
            create_pr=change.pull_request,
            parent_commit=change.head,
        )
    return Commit(made.oid, made.pr_url)


def _lost_answer(task: Task, change: Change, now: Listing) -> Commit:
    if changed(change.files, now):
        raise overtaken(task)
    return Commit(now.commit)


def overtaken(task: Task) -> RunError:
    """The error where the repository is no longer what was looked at."""
    reason = "somebody else changed the repository at the same time"
    return RunError(task.failure(reason, "run the command again"))


def _twice(task: Task, timeout: float, call: Callable[[], object]) -> None:
    """Make a call that may be made twice; one failure that may pass is forgiven."""
    with explained(task):
        began = time.monotonic()
        for last in (False, True):
            try:
                with _answers(task), bounded(task, PATIENCE * timeout):
                    call()
                return
            except HubTransportError as error:
                silent = time.monotonic() - began >= PATIENCE * timeout
                if last or silent or not may_pass(error):
                    raise
            time.sleep(RETRY_PAUSE_S)


@contextmanager
def _answers(task: Task) -> Iterator[None]:
    """Errors of the client that wrap others, or speak of answers that make no sense."""
    try:
        yield
    except (ZooError, HubTransportError):
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error.__cause__, ZooError | HubTransportError):
            raise error.__cause__ from None
        text = printable(error)[:200]
        reason = f"{no_hub()} ({text})"
        raise _UnreadableError(task.failure(reason, "check HF_ENDPOINT and the proxy")) from error
