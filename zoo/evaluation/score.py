"""Exact scores of a model on one split, at the images' own resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from zoo.common.console import progress_bar
from zoo.common.errors import InputError
from zoo.evaluation.counts import Confusion
from zoo.inference.tiling import predict_ids
from zoo.runtime.processes import Ranks

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.data.loading.loader import EvalLoader
    from zoo.models.segmentation import SegmentationModel
    from zoo.records.image_counts import ImageCounts


def check_classes(model: SegmentationModel, classes: list[str], name: str) -> None:
    """Raise InputError unless the model scores exactly the classes of the data, in their order."""
    if model.spec.classes != classes:
        raise InputError(
            f"{model.spec.name} scores {len(model.spec.classes)} classes "
            f"({', '.join(model.spec.classes[:6])} ...), {name} has {len(classes)} "
            f"({', '.join(classes[:6])} ...). Fine-tune the model on these classes first."
        )


def check_pixels(model: SegmentationModel, dataset: Dataset) -> None:
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
) -> Confusion:
    """The confusion matrix of `model` over all images of `loader`.

    The model's mode is restored afterwards. `after_batch` is called after each batch and may raise
    to stop. `precision`: fp32, bf16 or fp16 (autocast). With several `ranks`, each has its own part
    of the images in `loader`, and all get the counts of the whole. `per_image`, zeros of images of
    the split x classes x 3, is filled with each image's own counts.
    """
    ranks = ranks or Ranks()
    confusion = Confusion(model.spec.classes)
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with ranks.together(), progress_bar() as bar:
            task = bar.add_task(description, total=loader.images)
            for indices, images, masks in loader:
                predicted = predict_ids(model, images, precision=precision, device=device)
                _count(confusion, indices, masks, predicted.cpu(), per_image)
                bar.advance(task, len(indices))
                if after_batch is not None:
                    after_batch()
    finally:
        for module, mode in was_training:
            module.training = mode
    ranks.add_up(confusion.matrix)
    if per_image is not None:
        ranks.add_up(per_image)
    return confusion


def _count(
    confusion: Confusion,
    indices: list[int],
    masks: torch.Tensor,
    predicted: torch.Tensor,
    per_image: ImageCounts | None,
) -> None:
    if per_image is None:
        confusion.add(masks, predicted)
        return
    for index, mask, ids in zip(indices, masks, predicted, strict=True):
        one = Confusion(confusion.classes)
        one.add(mask, ids)
        confusion.add_matrix(one.matrix)
        per_image[index] = np.stack(one.pixel_counts[:3], axis=1)
