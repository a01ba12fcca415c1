"""Exact scores of a model on one split, at the images' own resolution."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from zoo.console import progress_bar
from zoo.errors import InputError
from zoo.evaluation.metrics import Confusion
from zoo.evaluation.ranks import Ranks
from zoo.models.outputs import resized
from zoo.models.preprocess import normalise, rescaled

if TYPE_CHECKING:
    from zoo.data.loader import EvalLoader
    from zoo.data.spec import Dataset
    from zoo.leaderboard.image_counts import ImageCounts
    from zoo.models.segmentation import SegmentationModel


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
        per_image[index] = one.counts


MOST_PIXELS = 2**22
"""Images with more pixels are seen through windows, so that memory does not grow with them."""
WINDOW, MARGIN = 1024, 192
"""Side of a window's part that counts, and the context that it sees around it, in pixels."""


def predict_ids(
    model: SegmentationModel,
    images: torch.Tensor,
    *,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Class ids, uint8 B x H x W, of uint8 images B x in_chans x H x W.

    The model must be in evaluation mode. Images that have more than 4 megapixels for the network,
    after what `spec` says of their size, are seen through windows of 1024 such pixels with 192
    pixels of context on each side.
    """
    height, width = images.shape[-2:]
    factor = model.spec.enlargement(height, width)
    seen = partial(_ids, model, factor=factor, precision=precision, device=device)
    if height * width * factor**2 <= MOST_PIXELS:
        return seen(images)
    side, margin = (max(1, round(length / factor)) for length in (WINDOW, MARGIN))
    ids = torch.empty((len(images), height, width), dtype=torch.uint8)
    for top in range(0, height, side):
        for left in range(0, width, side):
            y, x = max(0, top - margin), max(0, left - margin)
            found = seen(images[..., y : top + side + margin, x : left + side + margin])
            place = ids[..., top : top + side, left : left + side]
            found = found[..., top - y :, left - x :]
            place.copy_(found[..., : place.shape[-2], : place.shape[-1]])
    return ids


@torch.inference_mode()
def _ids(
    model: SegmentationModel,
    images: torch.Tensor,
    *,
    factor: float,
    precision: str,
    device: torch.device | str,
) -> torch.Tensor:
    seen = rescaled(normalise(images, model.spec, device), factor)
    with autocast(precision, device):
        logits: torch.Tensor = model(seen, factor=1.0)
    if seen.shape == images.shape:
        return logits.argmax(dim=1).to(torch.uint8)
    return best_class(logits, (images.shape[-2], images.shape[-1]))


def best_class(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class ids, uint8 B x H x W, of `logits` brought to `size` (H, W) bilinearly.

    One class after the other, so that memory grows with the image but not with its classes too.
    """
    most = logits.new_full((len(logits), *size), -torch.inf, dtype=torch.float32)
    ids = torch.zeros_like(most, dtype=torch.uint8)
    for index, plane in enumerate(logits.split(1, dim=1)):
        one = resized(plane.float(), size)[:, 0]
        ids[one > most] = index
        torch.maximum(most, one, out=most)
    return ids


def autocast(
    precision: str, device: torch.device | str
) -> contextlib.AbstractContextManager[object]:
    """torch.autocast for `precision`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(torch.device(device).type, dtype=dtype)


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """What `auto` means on `device`: bf16 where the hardware has it, else fp32.

    Raises InputError for fp16 on a CPU, which would silently run in fp32.
    """
    kind = torch.device(device).type
    if precision == "fp16" and kind == "cpu":
        raise InputError("precision fp16 needs a GPU. On a CPU use bf16, fp32 or auto.")
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if kind == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """True where this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
