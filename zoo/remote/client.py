"""What is asked of the Hub, and its failures in plain words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]
from huggingface_hub.file_download import repo_folder_name

from zoo.common.errors import InputError, RunError, ZooError, join_problems
from zoo.remote.address import Address

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
AGAIN = "check the connection, HF_ENDPOINT and the proxy, and run the command again"


class NoRepositoryError(InputError):
    """The Hub shows no such repository."""


class NoRevisionError(InputError):
    """The repository has no such commit, branch or tag."""


@dataclass(frozen=True)
class Task:
    """One thing wanted of the Hub.

    `goal` follows "Cannot" in messages; `ways` are what a person can do without the Hub.
    """

    goal: str
    address: Address
    ways: tuple[str, ...] = ()

    @property
    def repo(self) -> str:
        """The repository's id."""
        return self.address.repo

    @property
    def folder(self) -> Path:
        """The repository's folder in the Hub's cache."""
        name = repo_folder_name(repo_id=self.repo, repo_type="model")
        return Path(constants.HF_HUB_CACHE).expanduser() / name

    def failure(self, reason: str, *first_steps: str) -> str:
        """The whole message: what was wanted, what went wrong and the ways on."""
        return join_problems(f"Cannot {self.goal}: {reason}. Ways on:", [*first_steps, *self.ways])


def reason(error: ZooError) -> str:
    """What went wrong, in one line without the ways on: for a remark where work goes on."""
    return str(error).partition(" Ways on:")[0].partition("\n")[0]


@contextlib.contextmanager
def explained(task: Task) -> Iterator[None]:
    """Turn the client's errors into ours; no text of theirs that could hold a secret is kept."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        reason = "HF_HUB_OFFLINE is set"
        raise RunError(task.failure(reason, "with a connection: unset HF_HUB_OFFLINE")) from error
    except HfHubHTTPError as error:
        raise _refusal(task, error) from error
    except HubTransportError as error:
        detail = type(error).__name__
        if detail == "ConnectError":  # the system's own words, such as "Connection refused"
            detail = f"{detail}: {error}"
        raise RunError(task.failure(f"{host()} did not answer ({detail})", AGAIN)) from error
    except OSError as error:
        reason = f"the cache {constants.HF_HUB_CACHE} cannot be used ({error.strerror or error})"
        step = "free space there, or point HF_HOME at another folder"
        raise RunError(task.failure(reason, step)) from error


def may_pass(error: HubTransportError) -> bool:
    """Whether the same request may succeed a moment later."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _refusal(task: Task, error: HfHubHTTPError) -> ZooError:
    """The message for an answer with an error status."""
    status, repo = error.response.status_code, task.repo
    if isinstance(error, GatedRepoError):
        page = f"accept its conditions on the page of {repo}, then {LOGIN}"
        return InputError(task.failure("the repository is gated", page))
    if isinstance(error, RevisionNotFoundError):
        step = "name a commit, branch or tag that the repository has"
        return NoRevisionError(task.failure(f"it has no revision {task.address.branch!r}", step))
    if isinstance(error, RepositoryNotFoundError):
        step = f"check the name; if the repository is private, {LOGIN} with an account that may"
        reason = f"{host()} shows no such repository (status {status})"
        return NoRepositoryError(task.failure(reason, step))
    return refused(task, status, error.response.headers.get("Retry-After", ""))


def refused(task: Task, status: int, retry_after: str = "") -> ZooError:
    """The message for an error status that says nothing else."""
    if status in (401, 403):
        step = f"{LOGIN} with a valid token that may do this, or unset HF_TOKEN to ask without one"
        return InputError(task.failure(f"access was refused (status {status})", step))
    if status == 412:
        reason = "somebody else changed the repository at the same time (status 412)"
        return RunError(task.failure(reason, "run the command again"))
    if status == 429:
        step = f"wait {retry_after} seconds" if retry_after.isdigit() else "wait a few minutes"
        reason = "the Hub limits the rate of requests (status 429)"
        return RunError(task.failure(reason, f"{step}, and {LOGIN}: that raises the limit"))
    return RunError(
        task.failure(f"{host()} answered with status {status}", "run the command again later")
    )


def host() -> str:
    """The Hub's address for messages, without a name and password that it may carry."""
    return f"the Hub at {urlsplit(constants.ENDPOINT).netloc.rpartition('@')[2]}"


def no_hub() -> str:
    """The reason where something else answers in the Hub's place."""
    return f"what answered as {host()} is not a Hub"
