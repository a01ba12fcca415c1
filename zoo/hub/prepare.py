"""What a push would send: the files of a model folder, looked through before any request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from zoo.common.errors import InputError, join_problems, shortened
from zoo.common.files import read_json
from zoo.hub.card import Extras, card, read_card
from zoo.hub.folder import CARD, CONFIG, WEIGHTS, ModelFolder, check_shapes, read_folder
from zoo.hub.licences import model_licence
from zoo.hub.row import Row, numbers, weights_key
from zoo.records.record import PROTOCOL, Record, parse_record
from zoo.remote.upload import Content

if TYPE_CHECKING:
    import torch

MAX_PICTURE_BYTES = 5_000_000
PICTURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff"}


@dataclass(frozen=True)
class Parcel:
    """The files to send by name, README.md as it would be in an empty repository.

    `person` is the README.md of the folder, which may hold words of its owner; `licence` is what
    the user asked for.
    """

    described: ModelFolder
    files: dict[str, Content]
    card: str
    person: str | None
    extras: Extras
    licence: str | None

    def row(self, repo: str, revision: str) -> Row:
        """The row for registry.yaml: the first record's numbers, else the folder's."""
        spec, metrics = self.described.spec, self.described.metrics or {}
        row = Row(spec.name, spec.encoder, repo, revision, weights_key(metrics.get("dataset")))
        if self.extras.records:
            record = self.extras.records[0]
            return replace(
                row,
                key=weights_key(record.dataset),
                metrics=numbers(record.metrics.model_dump()),
                data=record.dataset,
                split=record.split,
                protocol=record.protocol,
            )
        if not metrics:
            return row
        return replace(
            row,
            metrics=numbers(metrics),
            data=metrics.get("dataset"),
            split=metrics.get("split"),
            protocol=PROTOCOL,
        )


def prepare(
    folder: Path,
    repo: str,
    *,
    licence: str | None = None,
    data_licence: str | None = None,
    picture: Path | None = None,
    records: Sequence[Path] = (),
    eval_results: str | None = None,
) -> Parcel:
    """Look through the model in `folder` and gather what a push to `repo` would send.

    Raises InputError for weights that are not finite or do not fit, for a licence that the
    encoder's terms forbid, and for records of another model.
    """
    described = read_folder(folder)
    if described.foreign:
        raise InputError(
            f"{folder} was written by segmentation-models-pytorch alone. Load it with zoo.create "
            "and push the model, so that classes and normalisation travel with it."
        )
    _check_weights(described)
    found = tuple(_record(path, described) for path in records)
    image = None if picture is None else _picture(picture)
    extras = Extras(
        repo=repo,
        licence=model_licence(licence, described.spec.licence),
        data_licence=data_licence,
        records=found,
        picture=None if image is None else image[0],
    )
    files: dict[str, Content] = {
        WEIGHTS: folder / WEIGHTS,
        CONFIG: (folder / CONFIG).read_bytes(),
    }
    if image is not None:
        files[image[0]] = image[1]
    if eval_results is not None:
        files[".eval_results/mean_iou.yaml"] = _eval_results(eval_results, found)
    own = folder / CARD
    return Parcel(
        described,
        files,
        card(described.spec, described.training, described.metrics, extras),
        read_card(own, str(folder)) if own.is_file() else None,
        extras,
        licence,
    )


def _check_weights(described: ModelFolder) -> None:
    from zoo.models.build import read_weights

    state = read_weights(described.path / WEIGHTS)
    check_shapes(described, {name: tuple(tensor.shape) for name, tensor in state.items()})
    broken = [name for name, tensor in state.items() if not _finite(tensor)]
    if broken:
        raise InputError(
            f"{described.path} holds weights that are NaN or infinite: {shortened(broken, 5)}. "
            "Such a model is of no use to anybody; train it again."
        )


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _record(path: Path, described: ModelFolder) -> Record:
    """The result in `path`. Raises InputError where it is of another model or training."""
    record, training = parse_record(read_json(path), str(path)), described.training or {}
    stated = {"model": described.spec.name, "classes": described.spec.classes}
    stated |= {key: training[key] for key in ("recipe_hash", "seed", "steps") if key in training}
    wrong = [
        f"{key} is {getattr(record, key)!r} there, {value!r} here"
        for key, value in stated.items()
        if getattr(record, key) != value
    ]
    if wrong:
        raise InputError(join_problems(f"{path} is not a result of {described.path}:", wrong))
    return record


def _picture(path: Path) -> tuple[str, bytes]:
    """Name in the repository and content of a picture. Raises InputError for anything else."""
    kind = path.suffix.lower()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the picture {path}: {error.strerror}.") from error
    if kind not in PICTURES or not content.startswith(PICTURES[kind]):
        raise InputError(f"{path} is not a PNG or JPEG picture.")
    if len(content) > MAX_PICTURE_BYTES:
        raise InputError(f"{path} is larger than {MAX_PICTURE_BYTES} bytes; make it smaller.")
    return f"picture{kind}", content


def _eval_results(dataset: str, records: Sequence[Record]) -> bytes:
    """The result in the Hub's own form, for the benchmark data set that the user names."""
    if not records:
        raise InputError("Results for a benchmark need a record of them; give it by --record.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        raise InputError(f"{dataset!r} is not a data set on the Hub; write ORG/NAME.")
    value = round(records[0].metrics.miou, 6)
    entry = {"dataset": {"id": dataset, "task_id": "mean_iou"}, "value": value}
    return yaml.safe_dump([entry], sort_keys=False).encode()
