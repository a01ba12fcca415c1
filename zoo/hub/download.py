"""One safetensors file from the Hub into the Hub's own cache: verified, bounded in time.

One request asks for the commit, the size and the SHA-256 of the file; one more (and the CDN's
redirect) brings it. The bytes are compared with that SHA-256 before they appear in the cache
(HF_HOME), where timm and every other client of the Hub find them too. The client's own
`hf_hub_download` is not used: it retries for minutes where a server is silent or failing, and it
keeps bytes that are wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as HubTransportError  # type: ignore[attr-defined]
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from zoo.console import progress_bar, remark
from zoo.errors import InputError, RunError, ZooError, join_problems, shortened
from zoo.files import sha256, write_text

RETRY_PAUSE_S = 1.0
CHUNK_BYTES = 1 << 18
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
OFFLINE_WAYS = (
    "without any download: encoder_weights=None, on the command line --encoder-weights none "
    "(random weights: expect far lower accuracy)",
    'from a file at hand: encoder_weights="FILE.safetensors", --encoder-weights FILE.safetensors',
    "from the cache of a machine that has a connection: copy its HF_HOME folder and point HF_HOME "
    "at the copy",
    "for good: an overlay registry (ZOO_REGISTRY) whose encoder rule names a local weights file",
)


@dataclass(frozen=True)
class EncoderFile:
    """A verified safetensors file: where it lies, and the repository and commit it came from."""

    path: Path
    repo: str
    revision: str
    sha256: str


@dataclass(frozen=True)
class Wanted:
    """The file to fetch: `name` is the encoder's for messages, `revision` None means main."""

    name: str
    repo: str
    revision: str | None
    filename: str

    @property
    def branch(self) -> str:
        """The revision by name."""
        return self.revision or "main"

    @property
    def folder(self) -> Path:
        """The repository's folder in the Hub's cache."""
        name = repo_folder_name(repo_id=self.repo, repo_type="model")
        return Path(constants.HF_HUB_CACHE).expanduser() / name

    def failure(self, reason: str, *first_steps: str) -> str:
        """The whole message: what was wanted, what went wrong and the ways on."""
        header = f"Cannot fetch the weights of encoder {self.name} from {self.repo}: {reason}."
        return join_problems(f"{header} Ways on:", [*first_steps, *OFFLINE_WAYS])


@dataclass(frozen=True)
class Listed:
    """What the Hub says about the file: its commit, its SHA-256 and its size in bytes."""

    revision: str
    sha256: str
    size: int


def cached_file(wanted: Wanted) -> EncoderFile | None:
    """The file in the cache, if there and sound; a damaged one is deleted."""
    found = try_to_load_from_cache(
        wanted.repo, wanted.filename, cache_dir=constants.HF_HUB_CACHE, revision=wanted.revision
    )
    if not isinstance(found, str):
        return None
    path = Path(found)
    with _explained(wanted):
        blob, digest = path.resolve(), sha256(path)
        if SHA256.fullmatch(blob.name) and blob.name != digest:
            remark(f"The cached weights of encoder {wanted.name} are damaged; deleted: {path}")
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            return None
    return EncoderFile(path, wanted.repo, path.parent.name, digest)


def ask(wanted: Wanted, timeout: float) -> Listed:
    """One request: the commit behind the revision, the file's size and its SHA-256.

    Raises InputError where the repository or the file is missing or closed to the user, RunError
    where the Hub fails or stays silent for `timeout` seconds.
    """
    with _explained(wanted):
        try:
            info = HfApi(library_name="zoo").model_info(
                wanted.repo, revision=wanted.revision, files_metadata=True, timeout=timeout
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(wanted.failure(_no_hub(), "check HF_ENDPOINT and the proxy")) from error
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    if wanted.filename not in files:
        raise InputError(_no_safetensors(wanted, sorted(files)))
    file, commit = files[wanted.filename], info.sha or ""
    digest = file.lfs.sha256 if file.lfs is not None else ""
    if not (COMMIT.fullmatch(commit) and SHA256.fullmatch(digest) and file.size is not None):
        reason = f"{_host()} lists no commit, size or SHA-256, so that no download can be verified"
        raise RunError(wanted.failure(reason))
    return Listed(commit, digest, file.size)


def _no_safetensors(wanted: Wanted, files: list[str]) -> str:
    held = f"it holds {shortened(files, 5)}" if files else "it is empty"
    return (
        f"{wanted.repo} has no {wanted.filename} ({held}). Pickles (.bin, .pth) can run code and "
        f"are never loaded. Choose another tag of encoder {wanted.name.partition('.')[0]}, or "
        "convert the weights with safetensors.torch.save_file and give "
        'encoder_weights="FILE.safetensors".'
    )


def store(wanted: Wanted, listed: Listed, timeout: float) -> EncoderFile:
    """Bring the listed file into the cache if it is not there. Raises InputError or RunError."""
    pointer = wanted.folder / "snapshots" / listed.revision / wanted.filename
    blob = wanted.folder / "blobs" / listed.sha256
    with _explained(wanted):
        if not _holds(pointer, listed.sha256):
            if not _holds(blob, listed.sha256):
                _download(wanted, listed, blob, timeout)
            _link(pointer, blob)
        _note_revision(wanted, listed.revision)
    return EncoderFile(pointer, wanted.repo, listed.revision, listed.sha256)


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _link(pointer: Path, blob: Path) -> None:
    """Let `pointer` lead to `blob`; where links are not possible the file itself moves there."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{pointer.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        temporary.replace(pointer)
    except OSError:
        temporary.unlink(missing_ok=True)
        blob.replace(pointer)


def _note_revision(wanted: Wanted, commit: str) -> None:
    """Remember which commit the branch pointed at, for the day without a connection."""
    note = wanted.folder / "refs" / wanted.branch
    if wanted.branch == commit or (note.is_file() and note.read_text() == commit):
        return
    with contextlib.suppress(RunError):  # a cache that cannot be written to serves all the same
        write_text(note, commit)


def _download(wanted: Wanted, listed: Listed, blob: Path, timeout: float) -> None:
    """Bring the file to `blob`, through a temporary file that never outlives the call."""
    remark(f"Fetching encoder {wanted.name} from {wanted.repo} ({listed.size / 1e6:.1f} MB).")
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.{uuid.uuid4().hex[:8]}.incomplete")
    url = hf_hub_url(wanted.repo, wanted.filename, revision=listed.revision)
    try:
        _transfer(url, part, listed.size, timeout)
        size, digest = part.stat().st_size, sha256(part)
        if digest != listed.sha256:
            reason = (
                f"the file that came ({size} bytes, SHA-256 {digest[:12]}...) is not the one that "
                f"the Hub lists ({listed.size} bytes, {listed.sha256[:12]}...); it was deleted"
            )
            raise RunError(wanted.failure(reason, "run the command again"))
        part.replace(blob)
    finally:
        part.unlink(missing_ok=True)


def _transfer(url: str, part: Path, size: int, timeout: float) -> None:
    """Stream `url` into `part`, resuming where a connection broke.

    A try that brought bytes is followed by another. One that brought none is repeated once, and
    not at all where the Hub refused or stayed silent for `timeout` seconds.
    """
    spare = 1
    with progress_bar() as bar:
        task = bar.add_task("MB", total=size / 1e6)
        while True:
            before, began = _length(part), time.monotonic()
            try:
                for length in _stream(url, part, size, timeout):
                    bar.update(task, completed=length / 1e6)
                return
            except HubTransportError as error:
                if _length(part) > before:
                    spare = 1
                elif spare and _may_pass(error) and time.monotonic() - began < timeout:
                    spare = 0
                else:
                    raise
            time.sleep(RETRY_PAUSE_S)


def _stream(url: str, part: Path, size: int, timeout: float) -> Iterator[int]:
    """Append what is missing of `part`; yields its length in bytes after every chunk."""
    start = _length(part)
    headers = {**build_hf_headers(library_name="zoo"), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        length = start if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
                length += len(chunk)
                yield length
                if length > size:
                    return


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _may_pass(error: HubTransportError) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


@contextlib.contextmanager
def _explained(wanted: Wanted) -> Iterator[None]:
    """Turn the client's errors into ours; no text of theirs that could hold a secret is kept."""
    again = "check the connection, HF_ENDPOINT and the proxy, and run the command again"
    try:
        yield
    except OfflineModeIsEnabled as error:
        reason = "HF_HUB_OFFLINE is set"
        raise RunError(wanted.failure(reason, "with a connection: unset HF_HUB_OFFLINE")) from error
    except HfHubHTTPError as error:
        raise _refusal(wanted, error) from error
    except HubTransportError as error:
        detail = type(error).__name__
        if detail == "ConnectError":  # the system's own words, such as "Connection refused"
            detail = f"{detail}: {error}"
        reason = f"{_host()} did not answer ({detail})"
        raise RunError(wanted.failure(reason, again)) from error
    except OSError as error:
        reason = f"the cache {constants.HF_HUB_CACHE} cannot be used ({error.strerror or error})"
        step = "free space there, or point HF_HOME at another folder"
        raise RunError(wanted.failure(reason, step)) from error


def _refusal(wanted: Wanted, error: HfHubHTTPError) -> ZooError:
    """The message for an answer with an error status."""
    status, repo = error.response.status_code, wanted.repo
    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        page = f"accept its conditions on the page of {repo}, then {login}"
        return InputError(wanted.failure("the repository is gated", page))
    if isinstance(error, RevisionNotFoundError):
        step = "name a commit, branch or tag that the repository has"
        return InputError(wanted.failure(f"it has no revision {wanted.branch!r}", step))
    if isinstance(error, RepositoryNotFoundError):
        step = (
            f"check the name; if the repository is private, {login} with an account that reads it"
        )
        reason = f"{_host()} shows no such repository (status {status})"
        return InputError(wanted.failure(reason, step))
    if status in (401, 403):
        step = f"{login} with a valid token, or unset HF_TOKEN to ask without one"
        return InputError(wanted.failure(f"access was refused (status {status})", step))
    if status == 429:
        after = error.response.headers.get("Retry-After", "")
        step = f"wait {after} seconds" if after.isdigit() else "wait a few minutes"
        reason = "the Hub limits the rate of requests (status 429)"
        return RunError(wanted.failure(reason, f"{step}, and {login}: that raises the limit"))
    reason = f"{_host()} answered with status {status}"
    return RunError(wanted.failure(reason, "run the command again later"))


def _host() -> str:
    """The Hub's address for messages, without a name and password that it may carry."""
    return f"the Hub at {urlsplit(constants.ENDPOINT).netloc.rpartition('@')[2]}"


def _no_hub() -> str:
    return f"what answered as {_host()} is not a Hub"
