"""A model to the Hub: one commit, or none where nothing changed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, join_problems
from zoo.hub.card import BEGIN, END, fields_of, merged, read_card, with_fields
from zoo.hub.folder import CARD, is_model_folder, save_folder
from zoo.hub.licences import licence_fields
from zoo.hub.prepare import Parcel, prepare
from zoo.hub.pull import MAX_CARD_BYTES
from zoo.hub.row import Row, register
from zoo.registry.licences import non_commercial
from zoo.remote import upload
from zoo.remote.address import Address, hub_timeout, problems
from zoo.remote.client import (
    LOGIN,
    Listing,
    NoRepositoryError,
    NoRevisionError,
    Task,
    list_files,
    overtaken,
)
from zoo.remote.files import download

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do in a dry run.

    `revision` is the commit (None in a dry run), `changed` the files that differ from what was
    there, `files` all files with their sizes in bytes, `row` the row for registry.yaml.
    """

    repo: str
    revision: str | None
    changed: list[str]
    files: dict[str, int]
    card: str
    row: Row | None
    pull_request: str | None = None


@dataclass(frozen=True)
class Aim:
    """Where and how a push goes."""

    private: bool = False
    branch: str = "main"
    tag: str | None = None
    pull_request: bool = False
    message: str | None = None


def push(
    model: str | Path | SegmentationModel,
    repo: str,
    *,
    private: bool = False,
    branch: str = "main",
    tag: str | None = None,
    pull_request: bool = False,
    message: str | None = None,
    licence: str | None = None,
    data_licence: str | None = None,
    picture: str | Path | None = None,
    records: Sequence[str | Path] = (),
    eval_results: str | None = None,
    register_in: str | Path | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Push a run, a model folder or a model to `repo` (ORG/NAME) on the Hub, in one commit.

    An unchanged model makes no commit. Text and fields that a person wrote into README.md are kept.
    `private` is for a repository that does not exist yet. `branch` is made where it is missing;
    `tag` names the commit; `pull_request` proposes it. `licence` is the model's, none unless given
    or required by the encoder's terms. `records` are result files of this model for the card,
    `eval_results` a benchmark on the Hub whose results page is to show the first of them.
    `register_in` is an overlay file that gets the model's row. `dry_run` sends nothing.

    Raises InputError for a model or a licence that must not be pushed, RunError where the Hub
    fails; the repository is then as it was.
    """
    aim = Aim(private, branch, tag, pull_request, message)
    task = Task(f"push to {repo}", Address(repo, None if branch == "main" else branch))
    _check(task, aim, dry_run)
    with _scratch() as scratch:
        parcel = prepare(
            _folder(model, scratch),
            repo,
            licence=licence,
            data_licence=data_licence,
            picture=None if picture is None else Path(picture),
            records=[Path(record) for record in records],
            eval_results=eval_results,
        )
        done = _send(task, aim, parcel, dry_run)
    if register_in is not None and done.row is not None:
        register(Path(register_in), [done.row])
    return done


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder that is gone after the block."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="zoo-push-")
    except OSError as error:
        raise RunError(f"Cannot write a temporary folder: {error.strerror or error}.") from error
    with folder:
        yield Path(folder.name)


def _check(task: Task, aim: Aim, dry_run: bool) -> None:
    from huggingface_hub import get_token

    found = list(problems(task.address))
    if aim.tag is not None:
        found += problems(Address(task.repo, aim.tag))
    if aim.pull_request and (aim.branch != "main" or aim.tag):
        found.append("a pull request goes to main and carries no tag")
    if aim.message is not None and not aim.message.strip():
        found.append("the commit message is empty")
    if not dry_run and not get_token():
        found.append(f"there is no token that may write: {LOGIN}")
    if found:
        raise InputError(join_problems(f"Cannot {task.goal}:", list(dict.fromkeys(found))))


def _folder(model: str | Path | SegmentationModel, scratch: Path) -> Path:
    """The folder of the model; one in memory is written to `scratch`."""
    if not isinstance(model, str | Path):
        save_folder(model, scratch / "model", training=model.provenance)
        return scratch / "model"
    path = Path(model)
    best = path / "best"
    if not path.is_dir():
        raise InputError(f"There is no folder {path}. Give a run folder or a model folder.")
    return best if is_model_folder(best) else path


def _send(task: Task, aim: Aim, parcel: Parcel, dry_run: bool) -> Pushed:
    timeout = hub_timeout()
    listing = _ask(task, timeout)
    text = _card(task, parcel, listing, timeout)
    files = {**parcel.files, CARD: text.encode()}
    changed = upload.changed(files, listing)
    sizes = {
        name: content.stat().st_size if isinstance(content, Path) else len(content)
        for name, content in files.items()
    }
    done = Pushed(task.repo, None, changed, sizes, text, None)
    head = None if changed or listing is None else listing.commit
    tags = aim.tag is not None and _tag_is_free(task, aim.tag, head, timeout)
    if dry_run:
        return done
    made = _write(task, aim, {name: files[name] for name in changed}, listing, timeout)
    upload.check_arrived(task, files, made, timeout)
    if aim.tag is not None and tags:
        upload.create_tag(task, aim.tag, made.revision, timeout)
    row = parcel.row(task.repo, made.revision)
    return replace(done, revision=made.revision, pull_request=made.pull_request, row=row)


def _ask(task: Task, timeout: float) -> Listing | None:
    """What is there; None where the repository or the branch does not exist."""
    try:
        return list_files(task, timeout)
    except NoRepositoryError:
        return None
    except NoRevisionError:
        return list_files(replace(task, address=Address(task.repo)), timeout)


def _write(
    task: Task, aim: Aim, files: dict[str, upload.Content], listing: Listing | None, timeout: float
) -> upload.Commit:
    """One commit of `files` on top of `listing`, which the card in them was merged with."""
    if listing is None:
        upload.create_repository(task, aim.private, timeout)
        listing = list_files(replace(task, address=Address(task.repo)), timeout)
        if files.keys() & listing.files.keys():
            raise overtaken(task)
    if aim.branch != "main":
        upload.create_branch(task, aim.branch, timeout)
        if list_files(task, timeout).commit != listing.commit:
            raise overtaken(task)
    if not files:
        info(f"{task.repo} holds this model already; no commit was made.")
        return upload.Commit(listing.commit)
    message = aim.message or "Push a model with zoo"
    change = upload.Change(files, listing.commit, aim.branch, message, aim.pull_request)
    return upload.commit(task, change, timeout)


def _card(task: Task, parcel: Parcel, listing: Listing | None, timeout: float) -> str:
    """README.md with what people wrote: there if anything, else in the folder."""
    existing = None
    if listing is not None and CARD in listing.files:
        existing = read_card(download(task, listing, CARD, timeout, MAX_CARD_BYTES), task.repo)
    if existing is None and parcel.person is not None and _has_own_words(parcel.person):
        existing = parcel.person
    text = merged(parcel.card, existing)
    return _licensed(text, task, parcel)


def _has_own_words(text: str) -> bool:
    start, stop = text.find(BEGIN), text.rfind(END)
    if not 0 <= start < stop:
        return True
    before = text[:start].rpartition("---")[2]
    return bool((before + text[stop + len(END) :]).strip())


def _licensed(text: str, task: Task, parcel: Parcel) -> str:
    """`text` with the licence that was given; without one, what a person wrote there stays.

    Raises InputError where the licence there allows what the encoder's terms forbid.
    """
    if parcel.licence is not None:
        return with_fields(text, {"license_name": None, **licence_fields(parcel.licence)})
    fields, encoder = fields_of(text), parcel.described.spec.licence
    present = fields.get("license_name") or fields.get("license")
    if non_commercial(encoder) and not non_commercial(str(present)):
        raise InputError(
            f"README.md of {task.repo} states the licence {present}, but the encoder's terms "
            f"({encoder}) forbid commercial use. Push with --licence {encoder}."
        )
    return text


def _tag_is_free(task: Task, tag: str, commit: str | None, timeout: float) -> bool:
    """Whether the tag has to be made; False where it names `commit` already.

    Raises InputError where it names another commit: tags are not moved.
    """
    try:
        named = list_files(replace(task, address=Address(task.repo, tag)), timeout).commit
    except (NoRevisionError, NoRepositoryError):
        return True
    if named != commit:
        raise InputError(
            f"Cannot {task.goal}: the tag {tag!r} names the commit {named[:12]} already, and tags "
            "are not moved. Choose another tag."
        )
    return False
