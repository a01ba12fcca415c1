"""One evaluation, and its record: the evidence that leaderboards are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.common.errors import InputError
from zoo.common.files import hash_of
from zoo.creation.create import load_trained
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import data_hash, scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.evaluation.score import check_classes, check_pixels, score
from zoo.models.count import gmacs, params_m
from zoo.records.image_counts import ImageCounts, counts_hash, write_with_counts
from zoo.records.record import PROTOCOL, SCHEMA, Record, parse_record
from zoo.runtime.environment import stamp
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import Ranks, start_ranks

if TYPE_CHECKING:
    from zoo.evaluation.counts import Confusion
    from zoo.models.segmentation import SegmentationModel
    from zoo.models.spec import ModelSpec


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found. `seconds` is the time of reading, predicting and counting.

    `per_image` has the counts of each image, in the order of the names as in the hash of the data.
    """

    model: SegmentationModel
    dataset: Dataset
    split: str
    confusion: Confusion
    per_image: ImageCounts
    precision: str
    device: str
    seconds: float

    @property
    def metrics(self) -> dict[str, Any]:
        """Every metric as a share in [0, 1], None where a class is absent."""
        return self.confusion.metrics()


def evaluate(
    model: str | Path | SegmentationModel,
    data: str | Path,
    *,
    split: str = "test",
    precision: str = "auto",
    out: str | Path | None = None,
) -> Evaluation:
    """Score `model` once on one split, at the images' own resolution.

    `model`: a run folder, a model folder or a model. Returns `.metrics` (mIoU, pixel accuracy and
    per class IoU, Dice, TPR, TNR, FPR, all in [0, 1]) and `.confusion`; writes the record into the
    folder `out` if given. Under torchrun or `accelerate launch` the processes share the images,
    each scored once. Raises InputError where the classes differ, where every pixel is ignored, and
    where a record is asked for of the split that chose the model.
    """
    model = load_trained(model)
    ranks = start_ranks()
    with ranks.first_then_rest():
        dataset, chosen = _checked(model, data, split, precision, out, ranks)
        loader = EvalLoader(dataset, split, rank=ranks.rank, world=ranks.world)
    began = time.monotonic()
    counts = np.zeros((len(dataset.samples(split)), len(dataset.classes), 3), np.int64)
    device = ranks.device
    confusion = score(
        model.to(device), loader, precision=chosen, device=device, ranks=ranks, per_image=counts
    )
    seconds = round(time.monotonic() - began, 2)
    counts = counts[_by_name(dataset, split)]
    found = Evaluation(model, dataset, split, confusion, counts, chosen, device.type, seconds)
    with ranks.together():
        if confusion.pixels == 0:
            raise InputError(
                f"{dataset.name}, split {split}: every pixel is ignored, nothing to score."
            )
        if out is not None and ranks.first:
            write_result(found, Path(out))
    return found


def write_result(found: Evaluation, folder: Path) -> Record:
    """Write the record of an evaluation and its counts per image into `folder`."""
    record = make_record(found)
    write_with_counts(record, folder, found.per_image)
    return record


def _by_name(dataset: Dataset, split: str) -> list[int]:
    """The places of the split's images in the order of their names."""
    names = [sample.name for sample in dataset.samples(split)]
    return sorted(range(len(names)), key=names.__getitem__)


def _checked(
    model: SegmentationModel,
    data: str | Path,
    split: str,
    precision: str,
    out: str | Path | None,
    ranks: Ranks,
) -> tuple[Dataset, str]:
    """The data set and the precision, once everything is known to fit."""
    dataset = load_dataset(data)
    dataset.samples(split)
    check_classes(model, dataset.classes, dataset.name)
    check_pixels(model, dataset)
    if out is not None:
        check_reportable(model, split)
    chosen = resolve_precision(precision, ranks.device)
    scan_labels(dataset, [split])
    return dataset, chosen


def check_reportable(model: SegmentationModel, split: str) -> None:
    """Raise InputError where `split` chose the model: a score on it is no result."""
    if (model.provenance or {}).get("chosen_on") == split:
        raise InputError(
            f"The split {split!r} chose the best epoch of this model, so its score is too good to "
            "be a result. Record another split, or leave --out away to see the score."
        )


def make_record(found: Evaluation) -> Record:
    """The record of an evaluation. Raises InputError where `check_reportable` does."""
    check_reportable(found.model, found.split)
    spec, training = found.model.spec, found.model.provenance or {}
    size = _common_size(found.dataset, found.split)
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "model": spec.name,
        "encoder_init": training.get(
            "encoder_init", "random" if spec.encoder_weights is None else "pretrained"
        ),
        "encoder_weights": training.get("encoder_weights", spec.encoder_weights),
        "dataset": found.dataset.name,
        "data_hash": data_hash(found.dataset, found.split),
        "split": found.split,
        "chosen_on": training.get("chosen_on"),
        "chosen_miou": training.get("chosen_miou"),
        "classes": found.dataset.classes,
        "ignore": spec.ignore_index,
        "size": size,
        "input_size": _input_size(spec, size),
        "tta": "none",
        "images": len(found.dataset.samples(found.split)),
        "recipe": training.get("recipe", "none"),
        "recipe_hash": training.get("recipe_hash", hash_of(None)),
        "overrides": training.get("overrides", {}),
        "seed": training.get("seed", 0),
        "steps": training.get("steps", 0),
        "train_seconds": training.get("train_seconds", 0.0),
        "eval_seconds": found.seconds,
        "metrics": found.metrics,
        "confusion": found.confusion.matrix.tolist(),
        "image_counts": counts_hash(found.per_image),
        "params_m": params_m(found.model),
        "gmacs": None if size is None else gmacs(spec, *size),
        "precision": found.precision,
        **stamp(found.device),
    }
    return parse_record(fields, f"the evaluation of {spec.name}")


def _input_size(spec: ModelSpec, size: list[int] | None) -> list[int] | None:
    """[height, width] that the network sees of images of `size`, where these differ."""
    seen = None if size is None else list(spec.input_size(*size))
    return None if seen == size else seen


def _common_size(dataset: Dataset, split: str) -> list[int] | None:
    """[height, width] in pixels that all images of the split share, or None."""
    sizes = scan_labels(dataset, [split]).splits[split].sizes
    return list(next(iter(sizes))) if len(sizes) == 1 else None
