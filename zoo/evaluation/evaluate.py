"""Scoring a model on one split, and its record: the evidence that leaderboards are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.common.console import progress_bar
from zoo.common.errors import InputError, type_words
from zoo.common.files import hash_of
from zoo.creation.create import load_trained
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import data_hash, scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.data.split import as_recorded
from zoo.evaluation.counts import Confusion
from zoo.hub.folder import known_training
from zoo.inference.tiling import predict_ids
from zoo.models.build import gmacs, params_m, weights_id
from zoo.models.layers import in_eval_mode
from zoo.models.outputs import Outputs
from zoo.models.segmentation import SegmentationModel
from zoo.records.image_counts import ImageCounts, counts_hash, write_with_counts
from zoo.records.record import PROTOCOL, SCHEMA, Record, parse_record
from zoo.runtime.environment import stamp
from zoo.runtime.precision import resolve_precision
from zoo.runtime.processes import Ranks, start_ranks


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation. `seconds` is the time of reading, predicting and counting.

    `per_image` has the counts of each image, ordered by name as in the hash of the data.
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
        """Every metric as a fraction in [0, 1], None where a class is absent."""
        return self.confusion.metrics()


def evaluate(
    model: str | Path | SegmentationModel,
    data: str | Path | Dataset,
    *,
    split: str = "test",
    precision: str = "fp32",
    out: str | Path | None = None,
    on_logits: Callable[[Outputs, Tensor], None] | None = None,
) -> Evaluation:
    """Score `model` once on one split, at the images' own resolution.

    `model`: a run folder, a model folder, a repository, a name that stands for trained weights, or
    a model. Returns `.metrics` (see docs/metrics.md) and `.confusion`; writes the record into the
    folder `out` if given. `precision`: fp32, bf16, fp16 or auto; the result states it. Under
    torchrun or `accelerate launch` the processes share the images, each image scored once.
    `on_logits` is that of `score`. Raises InputError where the classes differ, where every pixel is
    ignored, and where a record is asked for of the split that chose the model.
    """
    if not isinstance(split, str):
        raise InputError(f"split should be a name, such as test, got {type_words(split)}.")
    if out is not None and not isinstance(out, str | Path):
        raise InputError(f"out should be a folder, got {type_words(out)}.")
    run = model if isinstance(model, str | Path) else None
    model = load_trained(model)
    ranks = start_ranks()
    with ranks.main_process_first():  # it scans the masks, the others read its results
        dataset = load_dataset(data)
        if run is not None:
            dataset = as_recorded(dataset, run, split)
        samples = dataset.samples(split)
        check_classes(model, dataset.classes, dataset.name)
        check_input(model, dataset)
        if out is not None:
            check_reportable(model, split)
        precision = resolve_precision(precision, ranks.device)
        scan_labels(dataset, [split])
        loader = EvalLoader(dataset, split, rank=ranks.rank, world=ranks.world)
    began = time.monotonic()
    per_image = np.zeros((len(samples), len(dataset.classes), 3), np.int64)
    confusion = score(
        model.to(ranks.device),
        loader,
        precision=precision,
        device=ranks.device,
        ranks=ranks,
        per_image=per_image,
        on_logits=on_logits,
    )
    by_name = sorted(range(len(samples)), key=lambda index: samples[index].name)
    found = Evaluation(
        model=model,
        dataset=dataset,
        split=split,
        confusion=confusion,
        per_image=per_image[by_name],
        precision=precision,
        device=ranks.device.type,
        seconds=round(time.monotonic() - began, 2),
    )
    with ranks.raise_on_all_ranks():
        if confusion.pixels == 0:
            raise InputError(
                f"{dataset.name}, split {split}: every pixel is ignored, nothing to score."
            )
        if out is not None and ranks.first:
            write_result(found, Path(out))
    return found


def score(
    model: SegmentationModel,
    loader: EvalLoader,
    *,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    description: str = "evaluate",
    after_batch: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
    per_image: ImageCounts | None = None,
    on_logits: Callable[[Outputs, Tensor], None] | None = None,
) -> Confusion:
    """The confusion matrix of `model` over all images of `loader`.

    The model's mode is restored afterwards. `after_batch` is called after each batch and may raise
    to stop. `precision`: fp32, bf16 or fp16 (autocast). With several `ranks`, each has its own part
    of the images in `loader`, and all get the counts of the whole. `per_image`, zeros of images of
    the split x classes x 3, is filled with each image's own counts. `on_logits` gets the logits of
    each batch, or of each window of large images, with their masks, on the device.
    """
    ranks = ranks or Ranks()
    confusion = Confusion(loader.classes)

    def with_masks(masks: Tensor, outputs: Outputs, rows: slice, columns: slice) -> None:
        assert on_logits is not None
        on_logits(outputs, masks[..., rows, columns].to(device))

    with in_eval_mode(model), ranks.raise_on_all_ranks(), progress_bar() as bar:
        task = bar.add_task(description, total=loader.images)
        for indices, images, masks in loader:
            predicted = predict_ids(
                model, images, precision=precision, device=device,
                on_logits=on_logits and partial(with_masks, masks),
            ).cpu()  # fmt: skip
            if per_image is None:
                confusion.add(masks, predicted)
            else:
                for index, mask, ids in zip(indices, masks, predicted, strict=True):
                    one = Confusion(confusion.classes)
                    one.add(mask, ids)
                    confusion.add_matrix(one.matrix)
                    per_image[index] = np.stack(one.pixel_counts[:3], axis=1)
            bar.advance(task, len(indices))
            if after_batch is not None:
                after_batch()
    ranks.add_up(confusion.matrix)
    if per_image is not None:
        ranks.add_up(per_image)
    return confusion


def check_classes(model: SegmentationModel, classes: list[str], name: str) -> None:
    """Raise InputError unless the model predicts the classes of the data, in their order."""
    names = model.spec.id_names
    if not model.spec.predicts(classes):
        raise InputError(
            f"{model.spec.name} predicts {len(names)} classes ({', '.join(names[:6])} ...), "
            f"{name} has {len(classes)} "
            f"({', '.join(classes[:6])} ...). Fine-tune the model on these classes first."
        )


def check_input(model: SegmentationModel, dataset: Dataset) -> None:
    """Raise InputError unless the data's images have the channels and values the model expects."""
    spec = model.spec
    if dataset.channels != spec.in_chans:
        raise InputError(
            f"{spec.name} takes {spec.in_chans} channels, {dataset.name} has {dataset.channels}. "
            "Start from a name, which is built for the channels of the data."
        )
    if dataset.value_range != spec.value_range:
        raise InputError(
            f"{spec.name} was trained on pixels of the range {spec.value_range}, {dataset.name} "
            f"has {dataset.value_range} (None: 8 bits). Give both the same `range:`."
        )


def check_reportable(model: SegmentationModel, split: str) -> None:
    """Raise InputError where `split` chose the model: its score there is too good to report."""
    if (model.provenance or {}).get("chosen_on") == split:
        raise InputError(
            f"The split {split!r} chose the best epoch of this model, so its score is too good to "
            "be a result. Record another split, or leave out --out to see the score."
        )


def write_result(found: Evaluation, folder: Path) -> Record:
    """Write the record of an evaluation and its counts per image into `folder`."""
    record = make_record(found)
    write_with_counts(record, folder, found.per_image)
    return record


def _encoder_init(model: SegmentationModel) -> str:
    """How the encoder of a model started that no run of zoo has trained."""
    if model.spec.encoder_weights is not None:
        return "pretrained"
    return "random" if model.provenance is None else weights_id(model.net.state_dict())


def make_record(found: Evaluation) -> Record:
    """The record of an evaluation. Raises InputError where `check_reportable` does."""
    check_reportable(found.model, found.split)
    spec, training = found.model.spec, known_training(found.model) or {}
    sizes = scan_labels(found.dataset, [found.split]).splits[found.split].sizes
    size = list(next(iter(sizes))) if len(sizes) == 1 else None
    input_size = None if size is None else list(spec.input_size(*size))
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "model": spec.name,
        "encoder_init": training.get("encoder_init") or _encoder_init(found.model),
        "encoder_weights": training.get("encoder_weights", spec.encoder_weights),
        "dataset": found.dataset.name,
        "data_hash": data_hash(found.dataset, found.split),
        "split": found.split,
        "chosen_on": training.get("chosen_on"),
        "chosen_miou": training.get("chosen_miou"),
        "classes": found.dataset.classes,
        "ignore": spec.ignore_index,
        "size": size,
        "input_size": None if input_size == size else input_size,
        "sizes": spec.sizes,
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
