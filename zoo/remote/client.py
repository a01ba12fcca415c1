"""Calls of the Hub's client: bounded in time and in tries, with errors in plain words."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]
from huggingface_hub.file_download import repo_folder_name

from zoo.common.errors import InputError, RunError, ZooError, join_problems, printable
from zoo.remote.address import COMMIT, Address

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
CHECK_CONNECTION = "check the connection, HF_ENDPOINT and the proxy, and run the command again"
RETRY_PAUSE_S = 1.0
TRIES = 2
SLOWEST_BYTES_PER_S = 10_000
PATIENCE = 3
"""A request may take this many times the longest silence, and the time of its bytes at the slowest
speed."""
MAX_ANSWER_BYTES = 50_000_000
"""The largest answer that is not a file: the list of about 150,000 files."""
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

T = TypeVar("T")


class NoRepositoryError(InputError):
    """The Hub shows no such repository."""


class NoRevisionError(InputError):
    """The repository has no such commit, branch or tag."""


class UnreadableAnswerError(RunError):
    """An answer that no Hub gives; the request may have been carried out all the same."""


@dataclass(frozen=True)
class Task:
    """What is wanted of which repository.

    `goal` follows "Cannot" in messages; `advice` is what else a person can try; `kind` is that of
    the repository.
    """

    goal: str
    address: Address
    advice: tuple[str, ...] = ()
    kind: Literal["model", "dataset", "space"] = "model"

    @property
    def repo(self) -> str:
        """The repository's id."""
        return self.address.repo

    @property
    def folder(self) -> Path:
        """The repository's folder in the Hub's cache."""
        name = repo_folder_name(repo_id=self.repo, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE).expanduser() / name

    def failure(self, reason: str, *first: str) -> str:
        """The whole message: what was wanted, what went wrong and what to try."""
        advice = [*first, *self.advice]
        header = f"Cannot {self.goal}: {reason}."
        return join_problems(f"{header} Try:", advice) if advice else header


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository: its name, its size in bytes and its digest.

    The digest is the SHA-256 of a large file and git's id of a small one; it is also the name of
    the file in the Hub's cache.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of a repository at `commit`, by name."""

    commit: str
    files: dict[str, RemoteFile]


def list_files(task: Task, timeout: float) -> Listing:
    """The commit behind the revision and all its files, in one request.

    Raises InputError where the repository is missing or closed to the user, RunError where the Hub
    fails or does not list what a download is verified with.
    """

    def ask() -> Any:
        return api().repo_info(
            task.repo,
            revision=task.address.revision,
            repo_type=task.kind,
            files_metadata=True,
            timeout=timeout,
        )

    info = call(task, timeout, ask)
    files, commit = {}, info.sha if isinstance(info.sha, str) else ""
    for sibling in info.siblings or []:
        name, size = sibling.rfilename, sibling.size
        digest = sibling.blob_id if sibling.lfs is None else sibling.lfs.sha256
        texts = isinstance(name, str) and isinstance(digest, str)
        if texts and DIGEST.fullmatch(digest) and type(size) is int and size >= 0:
            files[name] = RemoteFile(name, size, digest)
        else:
            commit = ""
    if not COMMIT.fullmatch(commit):
        reason = f"{host()} lists no commit, size or SHA-256, so no download can be verified"
        raise RunError(task.failure(reason))
    return Listing(commit, files)


def api() -> HfApi:
    """The client that names this library to the Hub."""
    return HfApi(library_name="zoo")


def call(task: Task, timeout: float, action: Callable[[], T], limit: int = MAX_ANSWER_BYTES) -> T:
    """Run `action`, calls of the Hub's client, within `bounded`; returns what it returns.

    It is tried a second time after a failure that may pass, unless the Hub was silent for `timeout`
    seconds. Raises InputError or RunError.
    """
    with explained(task):
        began = time.monotonic()
        try:
            with bounded(task, timeout, limit):
                return action()
        except HubTransportError as error:
            if not may_pass(error) or time.monotonic() - began >= timeout:
                raise
        time.sleep(RETRY_PAUSE_S)
        with bounded(task, timeout, limit):
            return action()


@contextlib.contextmanager
def bounded(task: Task, timeout: float, limit: int = MAX_ANSWER_BYTES) -> Iterator[None]:
    """Within the block no request of the client waits longer than `timeout` seconds in silence.

    A request is cut off after three times that and the time that its bytes take at 10 kB/s, and an
    answer of more than `limit` bytes, or a compressed one, is not read. The client repeats failed
    requests for minutes; here it may do so once, and not at all after silence or where the Hub
    limits the rate. The token is sent to the Hub only, whatever address an answer names. Xet, to
    which none of this applies, is off unless HF_HUB_DISABLE_XET=0 turns it on. Raises RunError from
    within the client where a bound is reached.
    """
    session: Any = get_session()
    hooks, xet_is_off = session.event_hooks, constants.HF_HUB_DISABLE_XET
    guard = _Guard(task, timeout, limit)
    session.event_hooks = {
        "request": [*hooks["request"], guard.asked],
        "response": [*hooks["response"], guard.answered],
    }
    if os.environ.get("HF_HUB_DISABLE_XET", "").lower() not in ("0", "false", "no", "off"):
        constants.HF_HUB_DISABLE_XET = True
    watch = threading.Thread(target=guard.watch, daemon=True)
    watch.start()
    try:
        yield
    except ZooError:
        raise
    except (HubTransportError, OfflineModeIsEnabled) as error:
        if guard.late:
            raise guard.too_slow() from error
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        if guard.late:
            raise guard.too_slow() from error
        if isinstance(error.__cause__, ZooError | HubTransportError | OfflineModeIsEnabled):
            raise error.__cause__ from None  # the client wraps some of them
        if isinstance(error, OSError) and not isinstance(
            error, FileMetadataError | LocalEntryNotFoundError
        ):
            raise
        reason = f"what answered as {host()} is not a Hub ({printable(error)[:200]})"
        text = task.failure(reason, "check HF_ENDPOINT and the proxy")
        raise UnreadableAnswerError(text) from error
    finally:
        guard.done.set()
        session.event_hooks, constants.HF_HUB_DISABLE_XET = hooks, xet_is_off


_CONNECTIONS: weakref.WeakSet[Any] = weakref.WeakSet()
"""The client's connections, which it keeps open; the only way to end a request that drags on."""


class _Guard:
    """Counts the tries, the seconds and the bytes of each request.

    `late` is True once a request was cut off because it took too long, `done` is set at the end.
    """

    def __init__(self, task: Task, timeout: float, limit: int):
        self._task = task
        self._timeout = timeout
        self._limit = limit
        self._began = 0.0
        self._deadline = math.inf
        self._bytes = 0
        self.late = False
        self.done = threading.Event()
        self._tries: dict[tuple[str, str, str], list[float]] = {}
        self._answered: set[tuple[str, str, str]] = set()

    def watch(self) -> None:
        """Cut off a request that is late, until the end; for a thread of its own."""
        while not self.done.wait(min(1.0, self._timeout)):
            if time.monotonic() >= self._deadline:
                self.late = True
                for stream in list(_CONNECTIONS):
                    with contextlib.suppress(OSError):
                        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                return

    def too_slow(self) -> RunError:
        """The error where a request was cut off."""
        seconds = time.monotonic() - self._began
        reason = f"{host()} is too slow: {self._bytes} bytes in {seconds:.0f} seconds"
        return RunError(self._task.failure(reason, CHECK_CONNECTION))

    def counted(self, size: int, limit: int | None = None) -> None:
        """Called for each piece of a request or an answer."""
        self._bytes += size
        self._deadline = self._began + PATIENCE * self._timeout + self._bytes / SLOWEST_BYTES_PER_S
        if self.late or time.monotonic() >= self._deadline:
            raise self.too_slow()
        if limit is not None and self._bytes > limit:
            reason = f"{host()} sent more than the {limit} bytes that were to be expected"
            raise RunError(self._task.failure(reason, CHECK_CONNECTION))

    def finished(self) -> None:
        """Called when an answer was read."""
        self._deadline = math.inf

    def asked(self, request: Any) -> None:
        """Called before a request is sent."""
        if self.late:
            raise self.too_slow()
        self._began, self._bytes = time.monotonic(), 0
        self.counted(0)
        if request.method in ("POST", "PUT"):
            request.stream = _counted(request.stream, self)
        request.extensions["trace"] = _note_connection
        request.headers["accept-encoding"] = "identity"  # a few bytes could unpack to gigabytes
        if _origin(str(request.url)) != _origin(constants.ENDPOINT):
            request.headers.pop("authorization", None)
        patience = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        request.extensions["timeout"] = patience
        key = _key(request)
        tries = self._tries.setdefault(key, [])
        now = time.monotonic()
        silent = bool(tries) and key not in self._answered and now - tries[0] >= self._timeout
        # A HEAD without an answer is left to `call`: after a failed connection the client would
        # repeat it with a new session, for which these bounds do not hold.
        lost = bool(tries) and key not in self._answered and request.method == "HEAD"
        if silent or lost or len(tries) >= TRIES:
            within = f" within {self._timeout:g} seconds" if silent else ""
            reason = f"{host()} did not answer{within}"
            raise RunError(self._task.failure(reason, CHECK_CONNECTION))
        tries.append(now)

    def answered(self, response: Any) -> None:
        """Called when the head of an answer has come."""
        key, status = _key(response.request), response.status_code
        self._answered.add(key)
        self._bytes = 0
        response.stream = _counted(response.stream, self, self._limit)
        encoding = response.headers.pop("content-encoding", "identity")
        if encoding != "identity" and status < 400:
            reason = f"{host()} answered in the encoding {printable(encoding)[:20]}, not as asked"
            raise RunError(self._task.failure(reason, CHECK_CONNECTION))
        if status in (408, 429) or (status >= 500 and len(self._tries.get(key, [])) >= TRIES):
            raise refusal(self._task, status, response.headers.get("Retry-After", ""))
        if status < 500 and response.request.method != "GET":  # a GET's body can still break off
            self._tries.pop(key, None)


def _counted(stream: Any, guard: _Guard, limit: int | None = None) -> Any:
    """`stream`, the body of a request or, with a limit, of an answer, counted piece by piece."""
    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])

    class Counted(library.SyncByteStream):  # type: ignore[name-defined]
        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                guard.counted(len(piece), limit)
                yield piece

        def close(self) -> None:
            if limit is not None:
                guard.finished()
            stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    return Counted()


def _note_connection(event: str, info: dict[str, Any]) -> None:
    """Called by the client's transport at every step of a request."""
    if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
        _CONNECTIONS.add(info["return_value"])


def _key(request: Any) -> tuple[str, str, str]:
    """What makes two requests the same; a download that is resumed asks for another range."""
    return request.method, str(request.url), request.headers.get("range", "")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def may_pass(error: HubTransportError) -> bool:
    """Whether the same request may succeed a moment later; not where the connection is refused."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return type(error).__name__ != "ConnectError"


@contextlib.contextmanager
def explained(task: Task) -> Iterator[None]:
    """Turn the client's errors into ours; no text of theirs that could hold a secret is kept."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        reason = "HF_HUB_OFFLINE is set"
        raise RunError(task.failure(reason, "with a connection: unset HF_HUB_OFFLINE")) from error
    except GatedRepoError as error:
        page = f"accept its conditions on the page of {task.repo}, then {LOGIN}"
        raise InputError(task.failure("the repository is gated", page)) from error
    except RevisionNotFoundError as error:
        step = "name a commit, branch or tag that the repository has"
        reason = f"it has no revision {task.address.branch!r}"
        raise NoRevisionError(task.failure(reason, step)) from error
    except RepositoryNotFoundError as error:
        step = f"check the name; if the repository is private, {LOGIN} with an account that has "
        reason = f"{host()} shows no such repository (status {error.response.status_code})"
        raise NoRepositoryError(task.failure(reason, f"{step}access")) from error
    except HfHubHTTPError as error:
        answer = error.response
        raise refusal(task, answer.status_code, answer.headers.get("Retry-After", "")) from error
    except HubTransportError as error:
        detail = type(error).__name__
        if detail == "ConnectError":  # the system's own words, such as "Connection refused"
            detail = f"{detail}: {error}"
        reason = f"{host()} did not answer ({detail})"
        raise RunError(task.failure(reason, CHECK_CONNECTION)) from error
    except OSError as error:
        if error.errno is None:  # the client's own check of a download's length
            reason = f"{host()} sent a file of another size than it lists"
            raise RunError(task.failure(reason, "run the command again")) from error
        reason = f"the cache {constants.HF_HUB_CACHE} cannot be used ({error.strerror or error})"
        step = "free space there, or point HF_HOME at another folder"
        raise RunError(task.failure(reason, step)) from error


def refusal(task: Task, status: int, retry_after: str = "") -> ZooError:
    """The error for an HTTP status that says nothing else."""
    if status in (401, 403):
        step = f"{LOGIN} with a valid token that may do this, or unset HF_TOKEN to ask without one"
        return InputError(task.failure(f"access was refused (status {status})", step))
    if status == 412:
        return overtaken(task)
    if status == 429:
        step = f"wait {retry_after} seconds" if retry_after.isdigit() else "wait a few minutes"
        reason = "the Hub limits the rate of requests (status 429)"
        return RunError(task.failure(reason, f"{step}, and {LOGIN}: that raises the limit"))
    reason = f"{host()} answered with status {status}"
    return RunError(task.failure(reason, "run the command again later"))


def overtaken(task: Task) -> RunError:
    """The error where the repository is no longer what was looked at."""
    reason = "somebody else changed the repository at the same time"
    return RunError(task.failure(reason, "run the command again"))


def reason(error: ZooError) -> str:
    """What went wrong, in one line without advice: for a message where work goes on."""
    return str(error).partition(" Try:")[0].partition("\n")[0]


def host() -> str:
    """The Hub's address for messages, without a name and password that it may carry."""
    return f"the Hub at {urlsplit(constants.ENDPOINT).netloc.rpartition('@')[2]}"
