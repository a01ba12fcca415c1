"""A model to the Hub: one commit, or none where nothing changed."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, join_problems, renamed
from zoo.common.files import check_file, json_text, read_json, scratch_folder
from zoo.hub.card import (
    BEGIN,
    END,
    Extras,
    card,
    fields_of,
    license_fields,
    merged,
    model_license,
    read_card,
    with_fields,
)
from zoo.hub.decoder_only import leave_out
from zoo.hub.folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    ModelFolder,
    check_shapes,
    folder_of_run,
    load_folder,
    make_config,
    read_folder,
    save,
    write_weights,
)
from zoo.hub.publish import (
    HANDLER,
    REQUIREMENTS,
    Space,
    check_ours,
    find_space,
    handler_files,
    push_space,
)
from zoo.hub.pull import MAX_CARD_BYTES
from zoo.hub.row import Row, numbers, register, weights_key
from zoo.records.record import PROTOCOL, Record, parse_record
from zoo.registry.weights import non_commercial
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
from zoo.remote.files import check_snapshot, download

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel
    from zoo.models.spec import ModelSpec

MAX_IMAGE_BYTES = 5_000_000
IMAGE_STARTS = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff"}


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do in a dry run.

    `revision` is the commit (None in a dry run), `changed` the files that differ from what was
    there, `files` all files with their sizes in bytes, `row` the row for registry.yaml, `space` the
    address of the page, whose files are named spaces/ORG/NAME/FILE.
    """

    repo: str
    revision: str | None
    changed: list[str]
    files: dict[str, int]
    card: str
    row: Row | None
    pull_request: str | None = None
    space: str | None = None


@dataclass(frozen=True)
class PushOptions:
    """Where and how a push goes."""

    private: bool = False
    branch: str = "main"
    tag: str | None = None
    pull_request: bool = False
    message: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class UploadPlan:
    """The files to send by name; the card is that for an empty repository.

    `own_card` is the README.md of the folder, which may hold words of its owner; `license` is what
    the user asked for.
    """

    described: ModelFolder
    files: dict[str, upload.Content]
    card: str
    own_card: str | None
    records: tuple[Record, ...]
    license: str | None

    def row(self, repo: str, revision: str) -> Row:
        """The row for registry.yaml: the metrics of the first record, else the folder's."""
        spec, metrics = self.described.spec, self.described.metrics or {}
        data, split, protocol = metrics.get("dataset"), metrics.get("split"), PROTOCOL
        if self.records:
            record = self.records[0]
            metrics = record.metrics.model_dump()
            data, split, protocol = record.dataset, record.split, record.protocol
        row = Row(spec.name, spec.encoder, repo, revision, weights_key(data))
        if not metrics:
            return row
        return replace(row, metrics=numbers(metrics), data=data, split=split, protocol=protocol)


def push(
    model: str | Path | SegmentationModel,
    repo: str,
    *,
    private: bool = False,
    branch: str = "main",
    tag: str | None = None,
    pull_request: bool = False,
    message: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    picture: str | Path | None = None,
    records: Sequence[str | Path] = (),
    eval_results: str | None = None,
    register_in: str | Path | None = None,
    decoder_only: bool = False,
    space: bool = False,
    space_repo: str | None = None,
    handler: bool = False,
    dry_run: bool = False,
    licence: str | None = None,
    data_licence: str | None = None,
) -> Pushed:
    """Push a run, a model folder or a model to `repo` (ORG/NAME) on the Hub, in one commit.

    An unchanged model makes no commit. Text and fields that a person wrote into README.md are kept.
    `private` is for a repository that does not exist yet. `branch` is created where it is missing;
    `tag` names the commit; `pull_request` proposes it. `license` is the model's, none unless given
    or required by the encoder's terms. `picture` is a PNG or JPEG for the card; `records` are
    result files of this model for the card, `eval_results` a benchmark on the Hub whose results
    page is to show the first of them. `register_in` is an overlay file that gets the model's row.
    `decoder_only` leaves the encoder out, which has to be bit for bit what a file on the Hub gives
    at the commit that the model records; whoever loads the model gets it from there. `space` also
    writes the page of `zoo demo` to the Space `space_repo`, by default one of the model's name;
    `handler` adds what an inference endpoint runs. `dry_run` sends nothing.

    Raises InputError for a model or a license that must not be pushed, for an encoder that cannot
    be left out, and for a page or a handler that zoo did not write; RunError where the Hub fails.
    The repository is then as it was.
    """
    license = renamed("licence", licence, "license", license)
    data_license = renamed("data_licence", data_licence, "data_license", data_license)
    options = PushOptions(private, branch, tag, pull_request, message, dry_run)
    task = Task(f"push to {repo}", Address(repo, None if branch == "main" else branch))
    _check(task, options)
    if space_repo is not None and not space:
        raise InputError("space_repo= (--space-repo) goes with space=True (--space).")
    if space and pull_request:
        raise InputError(
            "A Space shows what was pushed; --space and --pull-request exclude each other."
        )
    page = find_space(space_repo or repo, hub_timeout()) if space else None
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_folder(Path(tempfile.gettempdir()), "zoo-push-"))
        except OSError as error:
            text = f"Cannot write a temporary folder: {error.strerror or error}."
            raise RunError(text) from error
        if isinstance(model, str | Path):
            folder = Path(model)
            if not folder.is_dir():
                raise InputError(f"There is no folder {folder}. Give a run or model folder.")
            folder = folder_of_run(folder)
            check_snapshot(folder, (CONFIG, WEIGHTS))
        else:
            folder = scratch / "model"
            save(model, folder)
        plan = plan_upload(
            folder,
            repo,
            license=license,
            data_license=data_license,
            picture=None if picture is None else Path(picture),
            records=[Path(record) for record in records],
            eval_results=eval_results,
            decoder_only=scratch if decoder_only else None,
        )
        if handler:
            plan = replace(plan, files={**plan.files, **handler_files()})
        done = _send(task, options, plan)
    if page is not None:
        done = _with_space(done, page, plan.described.spec, options)
    if register_in is not None and done.row is not None:
        register(Path(register_in), [done.row])
    return done


def _with_space(done: Pushed, page: Space, spec: ModelSpec, options: PushOptions) -> Pushed:
    """`done` with the page that was, or in a dry run would be, written to the Space."""
    model = Address(done.repo, done.revision or "<commit>")
    sent, changed = push_space(
        page, spec, model, private=options.private, dry_run=options.dry_run, timeout=hub_timeout()
    )
    place = f"spaces/{page.task.repo}/"
    return replace(
        done,
        space=page.url,
        changed=[*done.changed, *(place + name for name in changed)],
        files=done.files | {place + name: len(content) for name, content in sent.items()},
    )


def _check(task: Task, options: PushOptions) -> None:
    from huggingface_hub import get_token

    found = list(problems(task.address))
    if options.tag is not None:
        found += problems(Address(task.repo, options.tag))
    if options.pull_request and (options.branch != "main" or options.tag):
        found.append("a pull request targets main and cannot have a tag")
    if options.message is not None and not options.message.strip():
        found.append("the commit message is empty")
    if not options.dry_run and not get_token():
        found.append(f"there is no token that may write: {LOGIN}")
    if found:
        raise InputError(join_problems(f"Cannot {task.goal}:", list(dict.fromkeys(found))))


def plan_upload(
    folder: Path,
    repo: str,
    *,
    license: str | None = None,
    data_license: str | None = None,
    picture: Path | None = None,
    records: Sequence[Path] = (),
    eval_results: str | None = None,
    decoder_only: Path | None = None,
) -> UploadPlan:
    """Check the model in `folder` and gather what a push to `repo` would send.

    There is no request, unless the encoder is left out: `decoder_only` is a folder to write the
    rest of the weights to. Raises InputError for weights that are not finite or do not fit, for a
    license that the encoder's terms forbid, for records of another model, and for an encoder that
    cannot be left out or is not there.
    """
    described = read_folder(folder)
    if described.foreign:
        raise InputError(
            f"{folder} was written by segmentation-models-pytorch, not by zoo. Load it with "
            "zoo.create and push the model, so that classes and normalisation are stored "
            "with it."
        )
    _check_weights(described)
    weights, config, encoder = folder / WEIGHTS, (folder / CONFIG).read_bytes(), None
    if decoder_only is not None or described.encoder_on_hub is not None:
        loaded = load_folder(folder)  # what is published without its encoder can be loaded
        encoder = described.encoder_on_hub
    if decoder_only is not None and encoder is None:
        encoder, left_out = leave_out(loaded)
        weights = decoder_only / WEIGHTS
        write_weights(loaded, weights, left_out)
        made = make_config(described.spec, described.training, described.metrics, encoder)
        config = json_text(made).encode()
    found = tuple(_record(path, described) for path in records)
    image = {} if picture is None else _image(picture)
    extras = Extras(
        repo=repo,
        license=model_license(license, described.spec.license),
        data_license=data_license,
        records=found,
        picture=next(iter(image), None),
        encoder_on_hub=encoder,
    )
    files: dict[str, upload.Content] = {
        WEIGHTS: weights,
        CONFIG: config,
        **image,
    }
    if eval_results is not None:
        files[".eval_results/mean_iou.yaml"] = _eval_results(eval_results, found)
    text = card(described.spec, described.training, described.metrics, extras)
    own = folder / CARD
    own_card = read_card(own, str(folder)) if own.is_file() else None
    return UploadPlan(described, files, text, own_card, found, license)


def _check_weights(described: ModelFolder) -> None:
    from zoo.models.build import check_values, read_weights

    state = read_weights(described.path / WEIGHTS)
    check_shapes(described, {name: tuple(tensor.shape) for name, tensor in state.items()})
    check_values(state, described.path)


def _record(path: Path, described: ModelFolder) -> Record:
    """The result in `path`. Raises InputError where it is of another model or training."""
    record, training = parse_record(read_json(path), str(path)), described.training or {}
    spec = described.spec
    names = record.classes if spec.predicts(record.classes) else spec.id_names
    stated: dict[str, Any] = {"model": spec.name, "classes": names}
    stated |= {key: training[key] for key in ("recipe_hash", "seed", "steps") if key in training}
    wrong = [
        f"{key} is {getattr(record, key)!r} there, {value!r} here"
        for key, value in stated.items()
        if getattr(record, key) != value
    ]
    if wrong:
        raise InputError(join_problems(f"{path} is not a result of {described.path}:", wrong))
    return record


def _image(path: Path) -> dict[str, upload.Content]:
    """The image by its name in the repository. Raises InputError for anything else."""
    kind = path.suffix.lower()
    try:
        check_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the image {path}: {error.strerror}.") from error
    if kind not in IMAGE_STARTS or not content.startswith(IMAGE_STARTS[kind]):
        raise InputError(f"{path} is not a PNG or JPEG image.")
    if len(content) > MAX_IMAGE_BYTES:
        raise InputError(f"{path} is larger than {MAX_IMAGE_BYTES} bytes; make it smaller.")
    return {f"picture{kind}": content}


def _eval_results(dataset: str, records: Sequence[Record]) -> bytes:
    """The result in the Hub's own form, for the benchmark data set that the user names."""
    if not records:
        raise InputError("Results for a benchmark need a record of them; give it by --record.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        raise InputError(f"{dataset!r} is not a data set on the Hub; write ORG/NAME.")
    value = round(records[0].metrics.miou, 6)
    entry = {"dataset": {"id": dataset, "task_id": "mean_iou"}, "value": value}
    return yaml.safe_dump([entry], sort_keys=False).encode()


def _send(task: Task, options: PushOptions, plan: UploadPlan) -> Pushed:
    timeout = hub_timeout()
    on_main = replace(task, address=Address(task.repo))
    listing: Listing | None
    try:
        listing = list_files(task, timeout)
    except NoRepositoryError:
        listing = None
    except NoRevisionError:  # the branch is still to be created, on top of main
        listing = list_files(on_main, timeout)
    if listing is not None:
        check_ours(task, listing, plan.files.keys() & {HANDLER, REQUIREMENTS}, timeout)
    text = _card(task, plan, listing, timeout)
    files = {**plan.files, CARD: text.encode()}
    changed = upload.changed(files, listing)
    sizes = {
        name: content.stat().st_size if isinstance(content, Path) else len(content)
        for name, content in files.items()
    }
    done = Pushed(task.repo, None, changed, sizes, text, None)
    head = None if changed or listing is None else listing.commit
    tag_is_new = options.tag is not None and _tag_is_free(task, options.tag, head, timeout)
    if options.dry_run:
        return done
    if listing is None:
        upload.create_repository(task, options.private, timeout)
        listing = list_files(on_main, timeout)
        if files.keys() & listing.files.keys():
            raise overtaken(task)
    if options.branch != "main":
        upload.create_branch(task, options.branch, timeout)
        if list_files(task, timeout).commit != listing.commit:
            raise overtaken(task)
    if changed:
        change = upload.Change(
            {name: files[name] for name in changed},
            listing.commit,
            options.branch,
            options.message or "Push a model with zoo",
            options.pull_request,
        )
        made = upload.commit(task, change, timeout)
    else:
        info(f"{task.repo} holds this model already; no commit was made.")
        made = upload.Commit(listing.commit)
    upload.check_arrived(task, files, made, timeout)
    if options.tag is not None and tag_is_new:
        upload.create_tag(task, options.tag, made.revision, timeout)
    row = plan.row(task.repo, made.revision)
    return replace(done, revision=made.revision, pull_request=made.pull_request, row=row)


def _card(task: Task, plan: UploadPlan, listing: Listing | None, timeout: float) -> str:
    """README.md with what people wrote into it on the Hub, or else in the folder.

    A license that a person wrote stays unless one was given. Raises InputError where it allows what
    the encoder's terms forbid.
    """
    existing = None
    if listing is not None and CARD in listing.files:
        existing = read_card(download(task, listing, CARD, timeout, MAX_CARD_BYTES), task.repo)
    if existing is None and plan.own_card is not None and _has_own_words(plan.own_card):
        existing = plan.own_card
    text = merged(plan.card, existing)
    if plan.license is not None:
        return with_fields(text, {"license_name": None, **license_fields(plan.license)})
    fields, encoder = fields_of(text), plan.described.spec.license
    present = fields.get("license_name") or fields.get("license")
    if non_commercial(encoder) and not non_commercial(str(present)):
        raise InputError(
            f"README.md of {task.repo} states the license {present}, but the encoder's terms "
            f"({encoder}) forbid commercial use. Push with --license {encoder}."
        )
    return text


def _has_own_words(text: str) -> bool:
    """Whether a card holds more than zoo wrote."""
    start, stop = text.find(BEGIN), text.rfind(END)
    if not 0 <= start < stop:
        return True
    before = text[:start].rpartition("---")[2]
    return bool((before + text[stop + len(END) :]).strip())


def _tag_is_free(task: Task, tag: str, commit: str | None, timeout: float) -> bool:
    """Whether the tag is still to be created; False where it names `commit` already.

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
