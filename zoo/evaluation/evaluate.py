"""Scoring a model on one split, and its record: the evidence that leaderboards are made of."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
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
from zoo.data.dataset import Dataset
from zoo.data.inspect.scan import data_hash, scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.data.split import as_recorded
from zoo.evaluation.counts import Confusion
from zoo.hub.folder import build_on_meta
from zoo.inference.predictor import Predictor
from zoo.inference.tiling import Tile, joined, plan_windows, predict_ids
from zoo.models.build import gmacs, params_m
from zoo.models.layers import in_eval_mode
from zoo.models.outputs import Outputs
from zoo.models.segmentation import SegmentationModel
from zoo.records.image_counts import ImageCounts, counts_hash, write_with_counts
from zoo.records.record import PROTOCOL, SCHEMA, Record, parse_record
from zoo.runtime.environment import stamp
from zoo.runtime.processes import Ranks, start_ranks

SCORING: dict[str, Any] = {"precision": "fp32", "fold": False}
"""What scores are computed with, unless somebody asks for something else."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation. `seconds` is the time of reading, predicting and counting.

    `predictor` is what was scored, `per_image` has the counts of each image, ordered by name as in
    the hash of the data.
    """

    predictor: Predictor
    dataset: Dataset
    split: str
    confusion: Confusion
    per_image: ImageCounts
    seconds: float

    @property
    def precision(self) -> str:
        """What the network computed in."""
        return self.predictor.network.precision

    @property
    def device(self) -> str:
        """The kind of device that it ran on."""
        return self.predictor.network.device.type

    @property
    def metrics(self) -> dict[str, Any]:
        """Every metric as a fraction in [0, 1], None where a class is absent."""
        return self.confusion.metrics()


def evaluate(
    model: str | Path | SegmentationModel | Predictor,
    data: str | Path | Dataset,
    *,
    split: str = "test",
    out: str | Path | None = None,
    on_logits: Callable[[Outputs, Tensor], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Score `model` once on one split, at the images' own resolution.

    `model`: a run folder, a model folder, a repository, a name that stands for trained weights, a
    model, a file of `zoo export`, or a `Predictor`. `options` are those of `Predictor`, with
    precision fp32 and without folding unless they say so; what predicts with the same options gives
    the same pixels. Returns `.metrics` (see docs/metrics.md) and `.confusion`; writes the record
    into the folder `out` if given. Under torchrun or `accelerate launch` the processes share the
    images, each image scored once. `on_logits` is that of `score`. Raises InputError where the
    classes differ, where every pixel is ignored, and where a record is asked for of the split that
    chose the model.
    """
    if not isinstance(split, str):
        raise InputError(f"split should be a name, such as test, got {type_words(split)}.")
    if out is not None and not isinstance(out, str | Path):
        raise InputError(f"out should be a folder, got {type_words(out)}.")
    ranks = start_ranks()
    if not isinstance(model, Predictor):
        predictor = Predictor(model, **SCORING | options)
    elif options:
        raise InputError(
            f"The settings of a Predictor are its own, so {', '.join(options)} cannot be given."
        )
    else:
        predictor = model
    if on_logits is not None and (
        predictor.settings["tta"] != "none" or predictor.network.ids_only
    ):
        raise InputError("on_logits needs logits: leave out test-time augmentation and --argmax.")
    with ranks.main_process_first():  # it scans the masks, the others read its results
        if out is not None:
            check_reportable(predictor, split)
        dataset = scored_data(predictor, model, data, split)
        samples = dataset.samples(split)
        loader = EvalLoader(dataset, split, rank=ranks.rank, world=ranks.world)
    began = time.monotonic()
    per_image = np.zeros((len(samples), len(dataset.classes), 3), np.int64)
    confusion = score(
        predictor, loader, device=predictor.network.device, ranks=ranks, per_image=per_image,
        on_logits=on_logits,
    )  # fmt: skip
    by_name = sorted(range(len(samples)), key=lambda index: samples[index].name)
    found = Evaluation(
        predictor=predictor,
        dataset=dataset,
        split=split,
        confusion=confusion,
        per_image=per_image[by_name],
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


def scored_data(
    model: SegmentationModel | Predictor, run: object, data: str | Path | Dataset, split: str
) -> Dataset:
    """The data set on whose `split` a model is scored; `run` is what named the model.

    Raises InputError where the model does not predict its classes or does not take its images.
    """
    dataset = load_dataset(data)
    if isinstance(run, str | Path):
        dataset = as_recorded(dataset, run, split)
    dataset.samples(split)
    check_classes(model, dataset.classes, dataset.name)
    check_input(model, dataset)
    scan_labels(dataset, [split])
    return dataset


def score(
    model: SegmentationModel | Predictor,
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
    to stop. `precision`: fp32, bf16 or fp16 (autocast); a `Predictor` has its own. With several
    `ranks`, each has its own part of the images in `loader`, and all get the counts of the whole.
    `per_image`, zeros of images of the split x classes x 3, is filled with each image's own counts.
    `on_logits` gets the logits of each batch, or of each window of large images, with their masks,
    on the device.
    """
    ranks = ranks or Ranks()
    confusion = Confusion(loader.classes)

    def with_masks(masks: Tensor, tile: Tile) -> None:
        assert on_logits is not None
        on_logits(tile.outputs(), masks[..., tile.rows, tile.columns].to(device))

    mode: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if isinstance(model, SegmentationModel):
        mode = in_eval_mode(model)
    with mode, ranks.raise_on_all_ranks(), progress_bar() as bar:
        task = bar.add_task(description, total=loader.images)
        for indices, images, masks in loader:
            on_tile = on_logits and partial(with_masks, masks)
            if isinstance(model, SegmentationModel):
                predicted = predict_ids(
                    model, images, precision=precision, device=device, on_tile=on_tile
                )
            else:
                predicted = joined(model.tiles(images), (len(masks), *masks.shape[-2:]), on_tile)
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


def check_classes(model: SegmentationModel | Predictor, classes: list[str], name: str) -> None:
    """Raise InputError unless the model predicts the classes of the data, in their order."""
    names = model.spec.id_names
    if not model.spec.predicts(classes):
        raise InputError(
            f"{model.spec.name} predicts {len(names)} classes ({', '.join(names[:6])} ...), "
            f"{name} has {len(classes)} "
            f"({', '.join(classes[:6])} ...). Fine-tune the model on these classes first."
        )


def check_input(model: SegmentationModel | Predictor, dataset: Dataset) -> None:
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


def check_reportable(predictor: Predictor, split: str) -> None:
    """Raise InputError where `split` chose the model: its score there is too good to report."""
    if predictor.training.get("chosen_on") == split:
        raise InputError(
            f"The split {split!r} chose the best epoch of this model, so its score is too good to "
            "be a result. Record another split, or leave out --out to see the score."
        )


def write_result(found: Evaluation, folder: Path) -> Record:
    """Write the record of an evaluation and its counts per image into `folder`."""
    record = make_record(found)
    write_with_counts(record, folder, found.per_image)
    return record


def _encoder_init(predictor: Predictor) -> str:
    """How the encoder of a model started that no run of zoo has trained."""
    if predictor.spec.encoder_weights is not None:
        return "pretrained"
    fresh = predictor.model is not None and predictor.model.provenance is None
    return "random" if fresh else predictor.identity["weights"]


def _windows(predictor: Predictor, sizes: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """What a record states of windows: nothing where images are divided as they are by default.

    Else that of the largest image for which it differs.
    """
    differing = {}
    for size in sizes:
        used, usual = predictor.windows(*size), plan_windows(predictor.spec, *size)
        if (used.window, usual.window) != (None, None) and used != usual:
            differing[size] = used
    if not differing:
        return {}
    used = differing[max(differing, key=math.prod)]
    if used.window is None:
        return {"window": "whole"}
    square = isinstance(used.window, int) or len(set(used.window)) == 1
    side = used.sides[0] if square else list(used.sides)
    return {"window": side, "overlap": used.overlap, "blend": used.blend}


def make_record(found: Evaluation) -> Record:
    """The record of an evaluation. Raises InputError where `check_reportable` does."""
    predictor = found.predictor
    check_reportable(predictor, found.split)
    spec, training = predictor.spec, predictor.training
    settings = predictor.settings
    sizes = scan_labels(found.dataset, [found.split]).splits[found.split].sizes
    size = list(next(iter(sizes))) if len(sizes) == 1 else None
    input_size = None if size is None else list(spec.input_size(*size))
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "model": spec.name,
        "encoder_init": training.get("encoder_init") or _encoder_init(predictor),
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
        "tta": settings["tta"],
        "backend": settings["backend"],
        "folded": settings["folded"],
        **_windows(predictor, sizes),
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
        "params_m": params_m(predictor.model or build_on_meta(spec)),
        "gmacs": None if size is None else gmacs(spec, *size),
        "precision": found.precision,
        **stamp(found.device),
    }
    return parse_record(fields, f"the evaluation of {spec.name}")
